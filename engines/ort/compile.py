"""Compiles a graph with ONNX Runtime, in a process of its own, so that all its memory is freed.

It takes an ``.onnx`` file of a bundle. It writes ``<graph>.onnx``, already optimized, and ``<graph>.data``.
The data file holds each weight and, behind it, its prepacked form: the layout that this CPU's kernels use.
Loading runs no optimizer (``engines.ort.session``).

Behaviour of ONNX Runtime 1.31.1, found by experiment (Linux, CPU):

* The accuracy level is written into the nodes when compiling. The option has no effect at load.
* With prepacked weights the file is 2.2 times as large.
* A prepacked weight must be at a multiple of 64 bytes in the file. The writer ensures that only for tensors
  of 1 MiB and more: smaller ones shift their neighbours (1.32.0 places them right). At a wrong place the int4
  kernel silently reads garbage, and the float32 kernel ends the process (aligned loads). ``compile_graph``
  checks the place of each one. If one is wrong, it leaves the small weights, or all of them, to be prepacked
  at load.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.engines.backend import Options
from foveate.engines.child import end_with
from foveate.engines.errors import UserError
from foveate.engines.ort import library, providers
from foveate.engines.spec import GraphSpec

__all__ = ["compile_graph"]

onnxruntime = library.load()


def compile_graph(source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
    """Write ``folder/<graph>.onnx`` and its data from the ONNX file ``source``. Return notes for the user.

    ``options`` are ``provider`` and ``accuracy_level`` of int4 products (4: activations in int8, fast; 1:
    float32). The compiler runs in a process of its own, so that all its memory is freed. Raises UserError
    with ONNX Runtime's message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for minimum, prepack, notes in _ATTEMPTS:
        for half in (folder / f"{spec.name}.onnx", folder / f"{spec.name}.data"):
            half.unlink(missing_ok=True)
        job = {"source": str(source), "folder": str(folder), "name": spec.name, "options": dict(options)}
        _compile_apart(source, {**job, "minimum": minimum, "prepack": prepack})
        if not _misplaced(folder / f"{spec.name}.onnx"):
            return list(notes)
    raise AssertionError("without prepacked weights none is misplaced")


# (smallest size in bytes of weights that go to the data file, prepack, notes for the user)
_ATTEMPTS = (
    (1024, True, ()),
    (1 << 20, True, ("small weights are prepacked at load",)),
    (1024, False, ("weights are prepacked at load",)),
)

_PREPACKED = re.compile(rb"prepacked_\d+..?(\w+)\+\d+\|(\d+);", re.DOTALL)
_ALIGNMENT = 64


def _misplaced(model: Path) -> bool:
    """True if a prepacked weight is at a place where its kernel misreads it. See the module's docstring."""
    entries = _PREPACKED.findall(model.read_bytes())
    return any(int(offset) % _ALIGNMENT for _, offset in entries)


def _compile_apart(source: Path, job: Mapping[str, Any]) -> None:
    command = [
        sys.executable,
        "-m",
        "foveate.engines.ort.compile",
        json.dumps({**job, "parent": os.getpid()}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if done.returncode == _REFUSED:
        raise UserError(done.stdout)
    words = [line for line in done.stderr.splitlines() if line.strip()]
    said = words[-1] if words else f"it ended with status {done.returncode}, as when memory runs out"
    raise UserError(
        f"ONNX Runtime {onnxruntime.__version__} does not take {source.name} | {said} "
        "| build the bundle again, or compile for another target"
    )


_REFUSED = 3  # exit status of the process if it ends with a UserError, whose words it printed


def _compile_here(job: Mapping[str, Any]) -> None:
    config = onnxruntime.SessionOptions()
    config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # At 2 it warns that the model is for this machine only, which engine.json says too.
    config.log_severity_level = 3
    folder, name, options = Path(job["folder"]), job["name"], job["options"]
    config.optimized_model_filepath = str(folder / f"{name}.onnx")
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(job["minimum"]),
        "session.save_external_prepacked_constant_initializers": str(int(job["prepack"])),
        "session.qdq_matmulnbits_accuracy_level": str(options.get("accuracy_level", 4)),
    }
    for entry, value in entries.items():
        config.add_session_config_entry(entry, value)
    providers.open_session(Path(job["source"]), config, options)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    end_with(given["parent"])
    try:
        _compile_here(given)
    except UserError as refused:
        print(refused, end="")
        sys.exit(_REFUSED)
