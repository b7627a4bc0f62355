"""``foveate check --export-polygraphy``: a folder with which Polygraphy checks every graph of a bundle.

::

    DIR/<dialect>/<graph>/inputs.json     recorded inputs, and what torch computed from them
                          outputs.json
                          onnxrt.sh       compares ONNX Runtime with it
                          trt.sh          compares TensorRT with it, in the dialects that TensorRT takes
                          reduce.sh       finds the first node that TensorRT computes wrongly
                          graph.onnx      the graph with a cache of fixed length, for the last two

Nothing is compiled for that. Polygraphy need not be installed on the machine that writes the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from foveate.engines.backend import MAX_CONTEXT
from foveate.engines.disk import files
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec
from foveate.engines.trt.library import DIALECTS
from foveate.engines.trt.onnx_dims import fix_dimensions
from foveate.runtime.bundle.arrays import Archive
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling import polygraphy_json, self_test
from foveate.runtime.compiling.polygraphy_commands import (
    FIXED,
    GraphRun,
    can_reduce,
    script,
    weights_of,
)
from foveate.runtime.compiling.recorded_run import read_run

__all__ = ["export_polygraphy"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def export_polygraphy(bundle: Bundle, out: Path, progress: Callable[[str], None] = lambda line: None) -> int:
    """Write the folder ``out`` and return the number of graphs in it.

    ``progress`` gets a line per graph. Raises UserError if ``out`` exists or cannot be written, and if the
    bundle has no recorded answers, or damaged ones. Then there is no folder ``out``.
    """
    count = 0
    with _new_folder(bundle, out) as folder:
        for dialect in bundle.manifest.dialects:
            bundle.require_own_weights(dialect)
            with Archive(self_test.recorded(bundle, dialect)) as golden:
                for graph in bundle.manifest.stages:
                    for spec, file in bundle.manifest.forms(graph, dialect):
                        where = folder / dialect / spec.name
                        where.mkdir(parents=True)
                        _write(bundle, dialect, graph, spec, file, golden, where)
                        size = sum(each.stat().st_size for each in where.iterdir())
                        progress(f"{dialect}/{spec.name:<16}{size / 1e6:9.1f} MB")
                        count += 1
    return count


def _write(
    bundle: Bundle, dialect: str, graph: str, spec: GraphSpec, file: str, golden: Archive, folder: Path
) -> None:
    """Write the files of one form of a graph."""
    inputs, outputs = read_run(bundle.manifest, graph, spec, golden)
    rows = min(MAX_CONTEXT, bundle.manifest.decoder.max_positions)
    if spec.in_place:
        rows = inputs[spec.inputs[0].name].shape[1]
    limits = self_test.limits_in(bundle, dialect, graph)
    run = GraphRun(dialect, spec, file, weights_of(bundle, dialect, graph), rows, limits)
    (folder / "inputs.json").write_text(polygraphy_json.inputs(inputs))
    (folder / "outputs.json").write_text(polygraphy_json.outputs(outputs))
    scripts = {"onnxrt": ("Compares ONNX Runtime with the answers of torch.", run.onnxrt(outputs))}
    if dialect in DIALECTS:
        if spec.in_place:
            (folder / FIXED).write_bytes(fix_dimensions(bundle.file(file).read_bytes(), {"cache": rows}))
        rtx = "POLYGRAPHY_USE_TENSORRT_RTX=1 takes TensorRT for RTX."
        scripts["trt"] = (f"Compares TensorRT with the answers of torch. {rtx}", run.trt(outputs))
        if can_reduce(bundle, dialect, graph):
            purpose = f"Finds the first node that TensorRT computes wrongly: the end of reduced.onnx. {rtx}"
            scripts["reduce"] = (purpose, run.reduce())
    for name, (purpose, commands) in scripts.items():
        text = script(bundle.path.resolve(), purpose, commands)
        (folder / f"{name}.sh").write_text(text)
        (folder / f"{name}.sh").chmod(0o755)


@contextlib.contextmanager
def _new_folder(bundle: Bundle, out: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to ``out`` when the block succeeds, and removed when it raises.

    Raises UserError.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} exists already | it is not overwritten | name a new folder", code=2)
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise UserError(
            f"{out} lies in the bundle | a bundle holds only its own files | name a folder elsewhere", code=2
        )
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as parent:
            folder = Path(parent, out.name)
            folder.mkdir()
            yield folder
            files.flush(folder)
            folder.rename(out)  # fails if somebody else has put files there meanwhile
            files.flush_folder(out.parent)
    except OSError as error:
        reason, remedy = error.strerror or str(error), "name another folder"
        if error.errno in _FULL:
            reason = f"{reason}, {shutil.disk_usage(out.parent).free >> 20} MiB are free"
            remedy = "free some space, or name a folder on another disk"
        raise UserError(f"cannot write {out} | {reason} | {remedy}") from error
