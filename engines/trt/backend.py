"""TensorRT and TensorRT for RTX: compiles the dialects ``native`` and ``primitive`` to plans, and runs them.

One backend serves both bindings. They differ in the module's name and in how the GPU is chosen: TensorRT
builds for the GPU that it runs on, TensorRT-RTX needs no GPU and takes ``capability``. Compiling takes an
ONNX file of a bundle in float16. It writes ``<graph>.plan`` and ``<graph>.json``, the facts of its build.

Options, all recorded with the engine:

* ``max_context``: rows of the kv cache; the number is fixed in the plan
* ``capability``: TensorRT-RTX only; names such as SM86, or None for a portable plan
* ``optimization_level``: 0 to 5
* ``workspace``: MiB that the builder may use on the device
* ``version_compatible``: the plan also runs on other minor versions
* ``hardware_compatible``: TensorRT only; the plan runs on any GPU from Ampere on
* ``cuda_graphs``: decode steps are captured and replayed when the engine runs
* ``device_sampling``: the graph with the logits also returns the most likely tokens, see
  ``engines.topk_logits``

Options that no GPU run has confirmed are off by default: both compatibilities, CUDA graphs and device
sampling. Neither has any of the workarounds been confirmed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from foveate.engines.backend import Backend, Machine, Options
from foveate.engines.engine import Engine
from foveate.engines.errors import RefusedError, UserError
from foveate.engines.spec import GraphSpec
from foveate.engines.trt import builder, runner
from foveate.engines.trt.cuda.gpu import Gpu, find_gpu
from foveate.engines.trt.library import DIALECTS, LIBRARY
from foveate.engines.trt.profiles import compiled
from foveate.engines.trt.workarounds import FLAGS_VARIABLE, WORKAROUNDS
from foveate.engines.workarounds import Workaround, applicable

__all__ = ["TensorRT", "capabilities", "compile_plan"]

_NATIVE_SINCE = 10, 15  # RotaryEmbedding, RMSNormalization and TensorScatter in the parser
# precision -> the first GPUs that have it
_KINDS = {"fp8": (89, "an Ada GPU"), "int4": (80, "an Ampere GPU")}
_PORTABLE_SINCE = 80  # documented: a portable plan of TensorRT-RTX runs on SM80 and later


def capabilities(target: str = "tensorrt-rtx") -> list[str]:
    """Return the GPU architectures that ``target`` can compile for by name. Raises ModuleNotFoundError."""
    return builder.capabilities(importlib.import_module(LIBRARY[target]))


def compile_plan(
    path: Path,
    spec: GraphSpec,
    *,
    max_context: int = 4096,
    capability: str | None = None,
    target: str = "tensorrt-rtx",
) -> bytes:
    """Build the plan of one ONNX file in this process.

    Raises UserError: see ``engines.trt.builder.build``.
    """
    options = {"max_context": max_context, "capability": [capability] if capability else None}
    made = TensorRT(target)
    made.machine(options)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / f"{spec.name}.plan"
        builder.build(made.trt, path, spec, options, plan)
        return plan.read_bytes()


class TensorRT(Backend):
    """The backend of one target. Making one raises ModuleNotFoundError if its binding is not installed."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.trt = importlib.import_module(LIBRARY[target])
        self.version: str = self.trt.__version__

    @property
    def dialects(self) -> tuple[str, ...]:
        """Dialects that the parser of this version takes."""
        numbers = tuple(int(part) for part in self.version.split(".")[:2])
        old = self.target == "tensorrt" and numbers < _NATIVE_SINCE
        return ("primitive",) if old else DIALECTS

    @property
    def workarounds(self) -> tuple[Workaround, ...]:
        """Workarounds for this version."""
        return applicable(WORKAROUNDS, self.target, self.version)

    def machine(self, options: Options) -> Machine:
        """Return the version, platform and GPU that an engine with these options is for.

        Raises UserError if there can be no such engine.
        """
        version = self.version
        if options.get("version_compatible"):
            version = f"{version.partition('.')[0]}.*"
        return {
            "target": self.target,
            "version": version,
            "platform": f"{sys.platform}-{platform.machine()}",
            **self._gpu(options),
        }

    def _gpu(self, options: Options) -> dict[str, str]:
        """Return the GPUs that a plan with these options is for, as facts of ``machine``.

        A plan of full TensorRT is also bound to the model of the GPU, unless it is to run on all of them:
        TensorRT picks kernels by measuring them on it.
        """
        gpu, named = find_gpu(), options.get("capability")
        if self.target == "tensorrt":
            if named:
                raise UserError(
                    "TensorRT compiles for the GPU it stands on | --capability was given "
                    "| leave it out, or take --target tensorrt-rtx",
                    code=2,
                )
            if isinstance(gpu, str):
                raise UserError(
                    f"TensorRT compiles for the GPU it stands on | {gpu} | compile on the device, or take "
                    "--target tensorrt-rtx"
                )
            if options.get("hardware_compatible") and gpu.sm >= 80:
                return {"gpu": "SM80 or later"}
            return {"gpu": f"SM{gpu.sm}", "device": gpu.model}
        known = builder.capabilities(self.trt)
        for name in named or ():
            if name not in known:
                raise UserError(
                    f"{name} is not a target of TensorRT-RTX {self.version} | it has {', '.join(known)} "
                    "| Jetsons need TensorRT: --target tensorrt, on the device",
                    code=2,
                )
        if not named and isinstance(gpu, Gpu) and (reason := self._unknown(gpu)):
            raise UserError(f"{reason}; to compile for other machines, name their GPUs with --capability")
        return {"gpu": "+".join(named) if named else "portable"}

    def _unknown(self, gpu: Gpu) -> str | None:
        """Return why TensorRT-RTX does not run on ``gpu`` at all | what to do, or None."""
        known = builder.capabilities(self.trt)
        if f"SM{gpu.sm}" in known:
            return None
        return (
            f"TensorRT-RTX {self.version} does not run on {gpu.name} | that is SM{gpu.sm}, it has "
            f"{', '.join(known)} | take --target tensorrt, or --target onnxruntime --provider cuda"
        )

    def refusal(self, kinds: Collection[str], machine: Machine) -> str | None:
        """Return why weights of these precisions (``kinds``) cannot run on ``machine``, or None."""
        gpus = [int(sm) for sm in re.findall(r"SM(\d+)", machine["gpu"])] or [_PORTABLE_SINCE]
        for kind, (since, name) in _KINDS.items():
            if kind in kinds and min(gpus) < since:
                return f"{kind} needs {name} or newer, SM{since}, and this is for {machine['gpu']}"
        return None

    def key(self, machine: Machine) -> str:
        """Return the folder name for engines of ``machine``."""
        version, gpu = machine["version"].replace("*", "x"), machine["gpu"].replace(" or later", "-up")
        model = re.sub(r"[^A-Za-z0-9]+", "-", machine.get("device", ""))
        return "-".join(filter(None, (self.target, version, gpu, model)))

    def cannot_run(self, machine: Machine | None = None) -> str | None:
        """Return why plans cannot be executed here. See ``Backend.cannot_run``.

        TensorRT-RTX runs on the compute capabilities of its list, and each plan on those it was made for.
        """
        gpu = find_gpu()
        if isinstance(gpu, str):
            return gpu
        if self.target == "tensorrt":
            return None
        reason, made = self._unknown(gpu), machine["gpu"] if machine else None
        if reason or made is None:
            return reason
        serves = gpu.sm >= _PORTABLE_SINCE if made == "portable" else f"SM{gpu.sm}" in made.split("+")
        if serves:
            return None
        return (
            f"its engines are for {made} GPUs, this one is SM{gpu.sm} | compile with --capability SM{gpu.sm}"
        )

    def compile_graph(self, source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
        """Write ``folder/<graph>.plan`` and its facts. Return notes for the user.

        ``options["workarounds"]`` names the workarounds that apply to this graph. The builder runs in a
        process of its own, so that all its memory is freed. Raises UserError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / f"{spec.name}.plan"
        job = {
            "target": self.target,
            "source": str(source),
            "spec": spec.to_json(),
            "options": dict(options),
            "plan": str(plan),
            "cache": str(cache) if (cache := self.timings(folder, options)) else None,
        }
        facts = self._build_apart(source, job, _environment(options.get("workarounds", ())))
        plan.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts["notes"]

    def timings(self, folder: Path, options: Options) -> Path | None:
        """Return the file of the timing cache, beside the engines.

        TensorRT-RTX gets none, since its timing cache does nothing from 1.2 on.
        """
        if self.target == "tensorrt-rtx":
            return None
        return folder.parent / f".timings-{self.key(self.machine(options))}.cache"

    def _build_apart(
        self, source: Path, job: Mapping[str, Any], environment: Mapping[str, str]
    ) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "foveate.engines.trt.builder"],
            input=json.dumps({**job, "parent": os.getpid()}),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        records = _records(done.stdout)
        if not records:
            said = (
                f"{self.target} {self.version} did not finish {source.name} "
                f"| its process ended with status {done.returncode}"
            )
            if done.returncode == -signal.SIGKILL:
                raise UserError(
                    f"{said}, as when memory runs out "
                    "| a shorter --max-context, more memory, or a bundle built with --llm-parts"
                )
            raise RefusedError(f"{said} | take another dialect (--dialect)")
        facts, *more = records
        if "error" in facts:
            raise (RefusedError if facts.get("refused") else UserError)(facts["error"])
        if not more:  # it ended after the plan was finished
            facts["notes"].append(
                f"the plan was not looked at, the process ended with status {done.returncode}"
            )
        return {**facts, **(more[0] if more else {})}

    def describe(self, folder: Path, graph: str) -> dict[str, Any]:
        """Return the facts of a plan's build."""
        return json.loads((folder / f"{graph}.json").read_text(encoding="utf-8"))

    def load(self, folder: Path, spec: GraphSpec, options: Options) -> Engine:
        """Load the engine ``folder/<graph>.plan``. ``options`` are those of ``compile_graph``.

        Raises UserError if the plan has changed, if there is no GPU, or if the GPU has too little memory.
        """
        return runner.load(
            self.trt, self.target, folder / f"{spec.name}.plan", compiled(spec, options), options
        )


def _records(text: str) -> list[dict[str, Any]]:
    """Return the objects in the output of a builder, one per line. TensorRT may print other lines."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def _environment(workarounds: tuple[str, ...] | list[str]) -> dict[str, str]:
    flags = [
        workaround.flags for workaround in WORKAROUNDS if workaround.name in workarounds and workaround.flags
    ]
    given = os.environ.get(FLAGS_VARIABLE)
    return {FLAGS_VARIABLE: " ".join(filter(None, (given, *flags)))} if flags else {}
