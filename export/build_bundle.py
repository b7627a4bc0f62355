"""Build a bundle from a checkpoint's parts and a method."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export.bundling import precision as precisions
from foveate.export.bundling import write_files, write_graphs
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.publish import publish
from foveate.export.bundling.staging import Place, no_room, reserved
from foveate.export.calibration import calibrate
from foveate.export.checkpoints.layered_weights import packed
from foveate.export.graphs.assemble import assemble, with_files_for
from foveate.export.graphs.graph import Graph
from foveate.export.model_parts import ModelParts
from foveate.export.other_checkpoints import pruner_weights
from foveate.export.pruning.budgets import Points, sampled
from foveate.export.pruning.method import Method
from foveate.export.spec import DecoderSpec
from foveate.runtime.bundle import licence, typed_json
from foveate.runtime.bundle import loading as bundle
from foveate.runtime.bundle.manifest import (
    DecoderSizes,
    Manifest,
    MethodInfo,
    PositionMode,
    Source,
    vision_sizes,
)

__all__ = ["build", "manifest", "most_sorted", "write_bundle"]

_FAT = (1 << 32) - 1  # size in bytes of the largest file that FAT can hold
_BYTES = {"int4": 0.5, "int8": 1, "fp8": 1, "fp16": 2, "fp32": 4}  # bytes per matrix element, by precision


def build(
    parts: ModelParts,
    method: Method,
    out: Path,
    *,
    precision: Precision | str = "int4",
    dialects: list[str] | None = None,
    pruner: str | None = None,
    statistics: Statistics | None = None,
    calibration: calibrate.Calibration | None = None,
    llm_parts: int = 1,
) -> None:
    """Write the bundle of ``parts`` pruned by ``method`` to ``out``.

    An older bundle there is replaced at the end.

    * ``dialects``: their names; all of them must be possible. None builds all that are possible
      (``write_graphs.widen``).
    * ``pruner``: path or name of a trained method's weights (``pruner_weights.joined``).
    * ``statistics``: input statistics of ``parts``. With ``calibration`` they are collected here, and
      ``parts`` are made easier to quantize.
    * ``llm_parts``: the least number of graphs for the language model. A compiler sees one of them at a time.

    Raises UserError when ``out`` is not a bundle or is in use, when the pruner's weights are missing, and
    when the disk is full.
    """
    with reserved(out) as place:
        write_bundle(
            place,
            parts,
            method,
            precision=precision,
            dialects=dialects,
            pruner=pruner,
            statistics=statistics,
            calibration=calibration,
            llm_parts=llm_parts,
        )


def write_bundle(
    place: Place,
    parts: ModelParts,
    method: Method,
    *,
    precision: Precision | str = "int4",
    dialects: list[str] | None = None,
    pruner: str | None = None,
    statistics: Statistics | None = None,
    calibration: calibrate.Calibration | None = None,
    llm_parts: int = 1,
) -> list[str]:
    """Build a bundle like ``build``, in a place that is reserved already. Return the bundle's dialects."""
    precision = Precision.of(precision)
    calibrated = bool(statistics or calibration)
    asked = dialects is not None
    dialects, _ = precisions.dialects(precision, dialects, calibrated, most_sorted(parts, method))
    _require_room(place, parts.spec.decoder, "int4" if packed(parts.weights) else precision.decoder)
    root = place.root
    with _stages() as stage:
        graphs = assemble(parts, method, llm_parts)
        parts = pruner_weights.joined(with_files_for(parts, method), method, pruner)
        for note in licence.notes(parts.licence):
            print(note, file=sys.stderr)
        if calibration is not None:
            draft = manifest(place.name, parts, method, graphs, precision)
            parts, statistics = calibrate.calibrated(
                parts, method, graphs, draft, calibration, precision, root, place.beside, stage
            )
        written = write_graphs.write_graphs(root, parts, graphs, precision, dialects, stage, statistics)
        table = write_files.write_embeddings(root, parts.weights, precision)
        write_files.write_files(root, parts)
        stage("recording golden.npz", 0, 1)
        ranges = write_files.write_golden(root, parts, method, graphs, written.readings, table)
        written = write_graphs.widen(root, written, ranges, lambda line: print(line, file=sys.stderr), asked)
        stage("hashing", 0, 1)
        draft = manifest(place.name, parts, method, graphs, precision)
        draft = replace(draft, dialects=written.dialects, ranges=ranges.by_graph())
        made = bundle.write_manifest(root, draft.to_json())
    publish(place, bundle.Bundle(root, made), lambda line: print(line, file=sys.stderr))
    return list(made.dialects)


def _require_room(place: Place, decoder: DecoderSpec, precision: str) -> None:
    """Raise UserError, before any work, if the disk cannot even hold the matrices of the language model."""
    width, head = decoder.hidden_size, decoder.head_dim
    attention = 2 * width * head * (decoder.num_heads + decoder.num_kv_heads)
    layers = decoder.num_layers * (attention + 3 * width * decoder.intermediate_size)
    largest = int(layers * _BYTES[precision])
    need = largest + decoder.vocab_size * width * (4 if precision == "fp32" else 2)
    free = shutil.disk_usage(place.root).free
    if free < need:
        raise UserError(
            f"there is too little room for the bundle | {place.root.parent} has {free >> 20} MiB left, "
            f"its language model alone takes {need >> 20} MiB | free some space or choose another --out"
        )
    if largest > _FAT:
        probe = place.root / "probe"
        try:
            with probe.open("wb") as file:
                file.truncate(largest)  # a sparse file, which takes no room
        except OSError as error:
            raise no_room(place.folder.parent, error) from error
        probe.unlink()


def manifest(
    name: str, parts: ModelParts, method: Method, graphs: list[Graph], precision: Precision
) -> Manifest:
    """Return ``bundle.json`` without dialects, ranges and files."""
    spec, total = parts.spec, parts.spec.vision.image_tokens
    sizes = {each.name: getattr(spec.decoder, each.name) for each in fields(DecoderSizes)}
    said = precision.describe()
    if packed(parts.weights):
        said = replace(said, weights="as the checkpoint has them")
    return Manifest(
        name=name,
        family=spec.family,
        source=typed_json.read(Source, dict(parts.source), "source"),
        methods=(_method(parts, method, graphs),),
        precision=said,
        num_visual_tokens=total,
        grid=spec.vision.grid,
        decoder=DecoderSizes(**sizes),
        vision=vision_sizes(spec.vision.sizes),
        image=parts.image,
        prompt=parts.prompt,
        generation=parts.generation,
        licence=parts.licence,
        graphs={graph.spec.name: graph.spec for graph in graphs},
        dialects={},
        files={},
    )


def _method(parts: ModelParts, method: Method, graphs: list[Graph]) -> MethodInfo:
    spec, total = parts.spec, parts.spec.vision.image_tokens
    limits = sampled(total, lambda keep: method.leaves(spec, keep, total))
    before, inside = method.pre_llm, method.in_llm
    return MethodInfo(
        name=method.name,
        stages=tuple(graph.spec.name for graph in graphs),
        options=method.describe(),
        position_mode=_position_mode(method, spec.decoder),
        position_mode_inside=_position_mode(inside, spec.decoder) if inside else "keep",
        fixed_keep=method.fixed_keep(spec),
        whole=before is not None and before.whole,
        cuts=tuple(place.layer for place in inside.prune_layers(spec.decoder)) if inside else (),
        budgets=_points(method.budgets(spec)),
        limits=_points(limits),
    )


def _points(stages: Mapping[str, Points]) -> dict[str, tuple[tuple[float, float], ...]]:
    return {stage: tuple((float(k), float(v)) for k, v in points) for stage, points in stages.items()}


def most_sorted(parts: ModelParts, method: Method) -> int:
    """Return the largest number of tokens that a pruner ranks at once."""
    return 0 if method.name == "none" else parts.spec.vision.image_tokens


def _position_mode(method: Method, decoder: DecoderSpec) -> PositionMode:
    """Return the position mode of ``method``. It is always "keep" with M-RoPE."""
    return method.position_mode if decoder.position_axes == 1 else "keep"


@contextlib.contextmanager
def _stages() -> Iterator[write_graphs.Progress]:
    """Show progress on stderr: one line per finished stage, and a bar for the running one."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    task = bar.add_task("", total=1)
    began: dict[str, float] = {}

    def stage(what: str, done: int, total: int) -> None:
        verb = what.split()[0]
        if verb not in began:
            finish()
            began[verb] = time.monotonic()
        bar.update(task, description=what, completed=done, total=total)

    def finish() -> None:
        if began:
            verb, start = list(began.items())[-1]
            console.print(f"{verb:<10} {time.monotonic() - start:6.1f} s", highlight=False)

    with bar:
        yield stage
        finish()
