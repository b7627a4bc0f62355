"""ONNX Runtime as a backend: versions, machines, and the parts that compile and run graphs.

The CUDA provider uses the same code as the CPU. It has not been run on a GPU yet.
"""

from __future__ import annotations

import platform
from pathlib import Path

from foveate.engines.backend import Backend, Machine, Options
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.ort import compile as compiler
from foveate.engines.ort import library, providers, session
from foveate.engines.spec import GraphSpec
from foveate.engines.workarounds import Workaround, applicable

__all__ = ["VERSION", "OnnxRuntime", "onnxruntime"]

onnxruntime = library.load()
VERSION: str = onnxruntime.__version__

_TARGET = "onnxruntime"
_WORKAROUNDS = (
    Workaround(
        "int4 products in float32",
        "accuracy level 4 rounds activations to int8, which some models amplify: "
        "seen on random ones of 64 channels",
        targets=(_TARGET,),
        options={"accuracy_level": 1},
    ),
)

# Instruction sets that the kernels test for, best first. Prepacked weights have the chosen kernel's layout.
_INSTRUCTIONS = (
    *("amx_int8", "amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx_vnni_int8", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "avx"),
    *("sme2", "sme", "sve2", "sve", "i8mm", "bf16", "asimddp", "asimdhp", "asimd"),
)


class OnnxRuntime(Backend):
    """The backend of the target ``onnxruntime``."""

    @property
    def dialects(self) -> tuple[str, ...]:
        """Dialects that this version computes correctly."""
        return ("ort", "primitive") if self.refused_dialect("ort") is None else ("primitive",)

    @property
    def workarounds(self) -> tuple[Workaround, ...]:
        """Workarounds for this version."""
        return applicable(_WORKAROUNDS, _TARGET, VERSION)

    def machine(self, options: Options) -> Machine:
        """Return ONNX Runtime's version, the provider, and the CPU's instruction sets.

        ``options["provider"]`` is "cpu" (the default) or "cuda". Raises UserError if it cannot be used.
        """
        if library.numbers(VERSION) < library.OLDEST:
            least = ".".join(map(str, library.OLDEST))
            raise UserError(
                f"ONNX Runtime {VERSION} is too old | expected {least} or newer | pip install -U onnxruntime"
            )
        provider = providers.require(options)
        if provider == "cuda" and (reason := self.refused_dialect("ort")):
            raise UserError(f"the CUDA provider runs the dialect ort alone | {reason}")
        return {"target": _TARGET, "version": VERSION, "provider": provider, "cpu": _instructions()}

    def refused_dialect(self, name: str) -> str | None:
        """Return why this version is not used with the dialect ``name`` | what to do, or None if it is."""
        reason = library.refused_dialect(name, VERSION)
        return reason and f"{reason} | {library.upgrade(onnxruntime.get_available_providers())}"

    def rounds_activations(self, options: Options) -> bool:
        """True at accuracy level 4, which computes int4 products in int8."""
        return options.get("accuracy_level") == 4

    def key(self, machine: Machine) -> str:
        """Return the folder name for engines of ``machine``."""
        best = machine["cpu"][0] if machine["cpu"] else platform.machine()
        return f"{_TARGET}-{machine['version']}-{machine['provider']}-{best}"

    def compile_graph(self, source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
        """Compile one graph in a process of its own. See ``engines.ort.compile``."""
        return compiler.compile_graph(source, folder, spec, options)

    def load(self, folder: Path, spec: GraphSpec, options: Options) -> Engine:
        """Load one graph. See ``engines.ort.session``."""
        return session.load(folder, spec, options)


def _instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the ``_INSTRUCTIONS`` that this CPU has. Outside Linux, return the processor's name."""
    if not cpuinfo.is_file():
        return [(platform.processor() or platform.machine()).replace(" ", "-").replace("/", "-")]
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(value.split())
            return [name for name in _INSTRUCTIONS if name in have]
    return [platform.machine()]
