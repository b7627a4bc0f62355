"""NaN and infinity: an error names the stage whose engine first computed them.

float16 holds numbers up to 65,504. A model that was trained in bfloat16 may exceed that in some layer, and
every later number becomes infinite or NaN.

Outputs in host memory are checked when they are computed, once per image. Outputs on a device stay there. If
the logits are wrong, they are copied to find the first stage that was wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from foveate.engines.buffer import Buffer, Feed, host
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.row_gather import Rows
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.overflow import exceeded

__all__ = ["first_wrong", "refuse", "run_finite"]


def first_wrong(outputs: Mapping[str, Feed | Rows], rows: int | None = None) -> str | None:
    """Return the name of the first output that holds NaN or infinity. None if all are finite.

    ``rows`` is the number of rows along axis 1 that are checked, None for all. Outputs on a device are
    copied.
    """
    for name, output in outputs.items():
        if isinstance(output, Rows):
            values = output.numpy()
        elif np.dtype(output.dtype).kind == "f":
            values = host(output)[:, :rows]
        else:
            continue
        if not _finite(values):
            return name
    return None


def run_finite(bundle: Bundle, engine: Engine, feeds: Mapping[str, Feed]) -> dict[str, Buffer]:
    """Run a graph and return its outputs.

    Raises UserError if an output in host memory holds NaN or infinity.
    """
    outputs = dict(engine.run(feeds))
    rows = int(outputs["count"].numpy().max()) if "count" in outputs else None
    on_host = {name: output for name, output in outputs.items() if _lies_on_host(output)}
    if wrong := first_wrong(on_host, rows):
        raise refuse(bundle, engine.spec.name, outputs[wrong].dtype, wrong)
    return outputs


def _lies_on_host(output: Feed) -> bool:
    """Return whether the output can be read without a copy from a device."""
    return isinstance(output, np.ndarray) or output.on_host


def _finite(values: np.ndarray) -> bool:
    """Return whether all values are finite.

    The sum is a cheap test; each value is tested if the sum overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float32)
    return bool(np.isfinite(total) or np.isfinite(values).all())


def refuse(bundle: Bundle, graph: str, dtype: str, what: str) -> UserError:
    """Return the error for non-finite numbers ``what`` that ``graph`` computed in ``dtype``.

    The message tells the command that computes the graph in a wider type.
    """
    found = exceeded(bundle, graph) if dtype == "float16" else None
    why = f"; {found}" if found else ""
    return UserError(
        f"{graph} computed NaN or infinity | got {what} in {dtype}, expected finite numbers{why} "
        f"| {_remedy(bundle.manifest, bundle.path, dtype)}"
    )


def _remedy(manifest: Manifest, path: str | os.PathLike[str], dtype: str) -> str:
    wider = [name for name, entry in manifest.dialects.items() if entry.dtype == "float32"]
    unquantized = manifest.precision.decoder == "fp32"
    if dtype != "float32" and wider:
        return (
            "float16 holds numbers up to 65504: compute in float32 with "
            f"`foveate compile {path} --target onnxruntime --dialect {wider[0]}`"
        )
    if not unquantized:
        return "build the bundle again with --precision fp32, which computes in float32 in ONNX Runtime"
    return (
        "the checkpoint itself is at fault: its weights hold or make such numbers in float32 as well; "
        "use another one"
    )
