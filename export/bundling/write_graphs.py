"""Write the files of a bundle from assembled graphs: ONNX per dialect, shared weights, golden.npz, tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from foveate.calib.schemes.quantized import Form, PartName
from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export import lowering
from foveate.export.bundling import reference_run
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.ranges import MARGIN, Peak, Ranges
from foveate.export.bundling.weight_store import (
    Reading,
    Store,
    attach,
    parts_of,
    pending,
    require_finite,
    require_ranges,
)
from foveate.export.checkpoints.layered_weights import LayeredWeights, TensorWeights, packed
from foveate.export.graphs import trace
from foveate.export.graphs.graph import Graph
from foveate.export.networks.decoder import rope_tables
from foveate.export.pruning.method import Method
from foveate.export.spec import Parts, Weights
from foveate.runtime.images.processor import image_processor
from foveate.runtime.overflow import FLOAT16_MAX
from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot, Turn, clip_segments, load_tokenizer

__all__ = [
    "GOLDEN_TEXT",
    "Written",
    "widen",
    "write_embeddings",
    "write_files",
    "write_golden",
    "write_graphs",
]

GOLDEN_TEXT = "What is in the image, and where?"

Progress = Callable[[str, int, int], None]
"""Function that shows progress. Arguments: the current work in words, the finished and the total amount."""


@dataclass
class _Lowered:
    graph: Graph
    model: ir.Model
    path: Path
    dialect: str
    form: Form
    needs: list[tuple[str, str]]  # (weight, encoding)
    store: Store


@dataclass
class Written:
    """The written graphs of a bundle.

    ``readings`` holds the effective weights by reference file. ``index`` is the entry ``dialects`` of
    bundle.json.
    """

    readings: dict[str, Reading]
    index: dict[str, dict[str, Any]]
    lowered: list[_Lowered]
    statistics: Statistics | None


def write_graphs(
    root: Path,
    parts: Parts,
    graphs: list[Graph],
    precision: Precision,
    dialects: list[str],
    progress: Progress,
    statistics: Statistics | None = None,
) -> Written:
    """Write every graph in every dialect, and their weights.

    If ``precision`` has a second form for prefill, the segments of the language model are written in both
    forms. In-LLM pruners, which see only prompts, are written in the second form alone. Its integers are made
    from the numbers of the first form, so both are the same model.
    """
    lowered: list[_Lowered] = []
    index: dict[str, dict[str, Any]] = {}
    forms = {name: lowering.form(name, precision.decoder) for name in dialects}
    jobs = [(graph, dtype) for graph in graphs for dtype in sorted({form.dtype for form in forms.values()})]
    tables = dict(zip(("llm.rope_cos", "llm.rope_sin"), rope_tables(parts.decoder.spec), strict=True))
    first = Store(root, LayeredWeights(TensorWeights(tables), parts.weights))
    second = Store(root, first)
    schemes = {first: precision.choose(packed(parts.weights)), second: precision.prefilling.choose()}

    def keep(graph: Graph, model: ir.Model, name: str, dialect: str, store: Store) -> str:
        needs = list(pending(model, schemes[store]))
        require_ranges(needs, forms[dialect], statistics)
        path = root / f"{name}.{dialect}.onnx"
        lowered.append(_Lowered(graph, model, path, dialect, forms[dialect], needs, store))
        return path.name

    for done, (graph, dtype) in enumerate(jobs):
        name = graph.spec.name
        progress(f"tracing {name} in {dtype}", done, len(jobs))
        model = trace.trace(graph, dtype)
        for dialect in (d for d in dialects if forms[d].dtype == dtype):
            copy = lowering.lower(model, graph.spec, dialect)
            twice = precision.prefill is not None and forms[dialect].dynamic
            entry = index.setdefault(dialect, {"dtype": dtype, "files": {}})
            prompts_alone = twice and name.startswith("pruner.")
            entry["files"][name] = keep(graph, copy, name, dialect, second if prompts_alone else first)
            if twice and graph.spec.in_place:
                again = keep(graph, copy.clone(), f"{name}.prefill", dialect, second)
                entry.setdefault("prefill", {})[name] = again
    known = _write_weights(first, lowered, progress)
    _write_weights(second, lowered, progress, known)
    for item in lowered:
        attach(item.model, item.store, item.needs, item.form, statistics)
        ir.save(item.model, item.path)
    readings = {}
    for entry in index.values():
        mine = [item for item in lowered if item.path.name in entry["files"].values()]
        reading = _reading(mine, first, statistics)
        kind = ("dynamic." if reading.form.dynamic else "static.") if reading.rounds else ""
        entry["golden"] = f"golden.{kind}npz"
        readings[entry["golden"]] = reading if kind else Reading(first)
    return Written(readings, index, lowered, statistics)


def _reading(lowered: list[_Lowered], first: Store, statistics: Statistics | None) -> Reading:
    """Return the effective weights of a dialect's graphs. Graphs with another store than ``first`` are in-LLM
    pruners."""

    def of(items: list[_Lowered]) -> Reading:
        needs = dict(pair for item in items for pair in item.needs)
        return Reading(items[0].store, items[0].form, needs, statistics)

    pruners = [item for item in lowered if item.store is not first]
    found = of([item for item in lowered if item.store is first])
    return replace(found, pruning=of(pruners)) if pruners else found


def _write_weights(
    store: Store, lowered: list[_Lowered], progress: Progress, known: Container[tuple[str, str]] = ()
) -> Container[tuple[str, str]]:
    """Write the (weight, encoding) pairs that the graphs of ``store`` need and that are not ``known``; return
    them."""
    wanted: dict[tuple[str, str], set[PartName]] = {}
    for item in (item for item in lowered if item.store is store):
        for name, encoding in item.needs:
            if (name, encoding) not in known:
                wanted.setdefault((name, encoding), set()).update(parts_of(encoding, item.form))
    done = 0

    def step(name: str) -> None:
        nonlocal done
        done += 1
        progress(f"writing {name}", done, len(wanted))

    store.write(wanted, step)
    return wanted.keys()


def write_embeddings(root: Path, weights: Weights, precision: Precision) -> np.ndarray:
    """Write ``embed_tokens.npy [V,D]``, float32 in fp32 bundles and else float16. Return it mapped, as the
    runtime does."""
    dtype = "float32" if precision.decoder == "fp32" else "float16"
    table, path = weights.get("embed_tokens"), root / "embed_tokens.npy"
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(table.shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in table.split(4096):  # a second whole table would take gigabytes
            stored = rows.to(getattr(torch, dtype)).contiguous().numpy()
            require_finite("embed_tokens", stored)
            file.write(stored.data)
    return np.load(path, mmap_mode="r")


def write_files(root: Path, parts: Parts) -> None:
    """Write licences, tokenizers and the family's own files."""
    for name, source in parts.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            (root / name).write_bytes(source)
        else:
            shutil.copyfile(source, root / name)


def write_golden(
    root: Path,
    parts: Parts,
    method: Method,
    graphs: list[Graph],
    readings: Mapping[str, Reading],
    table: np.ndarray,
) -> Ranges:
    """Record the reference answers to a fixed question, in one file for each of ``readings``
    (``reference_run``).

    Returns the largest values that were computed.
    """
    ranges = Ranges()
    one_axis = parts.spec.decoder.position_axes == 1
    renumbers = method.in_llm is not None and method.in_llm.position_mode == "compact" and one_axis
    images = image_processor(parts.image)
    plan = images.token_layout(images.reference_size(), parts.spec.vision.grid)
    whole = method.pre_llm is not None and method.pre_llm.whole
    facts = reference_run.Facts(plan, method.budgets(parts.spec), renumbers, whole)
    question = _question(root, parts, graphs)
    for name, reading in readings.items():
        np.savez(root / name, **reference_run.record(graphs, reading, table, question, facts, ranges))
    return ranges


_FLOAT32 = "build with --dialects ort and --precision int4, int8 or fp32, which compute in float32"


def widen(root: Path, written: Written, ranges: Ranges, say: Callable[[str], None], asked: bool) -> None:
    """Rewrite float16 graphs whose values float16 cannot hold.

    Such a graph is written again in float32, with inputs and outputs in float16
    (``common_passes.Float16Edges``), and listed under "widened" in its dialect's entry. A dialect whose
    inputs, outputs or kv caches are too large is left out. ``say`` is told about both. Raises UserError when
    no dialect is left, and instead of leaving one out if the dialects were ``asked`` for by name.
    """
    index, reasons = written.index, {}
    for dialect, entry in list(index.items()):
        if entry["dtype"] != "float16":
            continue
        edges = (ranges.first_too_wide(name, edge=True) for name in entry["files"])
        if (peak := next(filter(None, edges), None)) is not None:
            reasons[dialect] = _too_wide(peak)
            if asked:
                raise UserError(
                    f"the dialect {dialect} cannot hold what the model computes | {reasons[dialect]} "
                    f"| {_FLOAT32}, or leave --dialects out: the bundle then has the dialects that can"
                )
            _leave_out(root, written, dialect)
            say(f"the dialect {dialect} is left out: {reasons[dialect]}")
            continue
        for name in entry["files"]:
            if (peak := ranges.first_too_wide(name, edge=False)) is not None:
                for item in (i for i in written.lowered if (i.dialect, i.graph.spec.name) == (dialect, name)):
                    _write_widened(item, written.statistics)
                entry.setdefault("widened", {})[name] = "float32"
                say(f"{name} of {dialect} is written in float32: {_too_wide(peak)}")
    if not index:
        raise UserError(
            "no dialect of this bundle can hold what the model computes "
            f"| {next(iter(reasons.values()))} | {_FLOAT32}"
        )


def _too_wide(peak: Peak) -> str:
    limit = f"float16 holds numbers up to {FLOAT16_MAX:g}"
    if peak.value > FLOAT16_MAX:
        return f"{peak} reaches {peak.value:.3g}, {limit}"
    return (
        f"{peak} reaches {peak.value:.3g} in the one prompt that is recorded, {limit}, "
        f"of which 1/{MARGIN:g} is used"
    )


def _leave_out(root: Path, written: Written, dialect: str) -> None:
    entry = written.index.pop(dialect)
    for file in (*entry["files"].values(), *entry.get("prefill", {}).values()):
        (root / file).unlink()
    if not any(other["golden"] == entry["golden"] for other in written.index.values()):
        (root / entry["golden"]).unlink()


def _write_widened(item: _Lowered, statistics: Statistics | None) -> None:
    """Write the graph in float32 with inputs and outputs in float16. Weights stored in float16 are cast in
    the graph."""
    model = lowering.lower(trace.trace(item.graph, "float32"), item.graph.spec, item.dialect, widened=True)
    form = replace(item.form, dtype="float32")
    parts = {need: item.store.missing(need[0], parts_of(need[1], form)) for need in item.needs}
    item.store.write({need: missing for need, missing in parts.items() if missing})
    attach(model, item.store, item.needs, form, statistics)
    ir.save(model, item.path)


def _question(root: Path, parts: Parts, graphs: list[Graph]) -> reference_run.Question:
    tokenizer = ChatTokenizer(root / "tokenizer.json", parts.prompt)
    segments = tokenizer.encode_turns([Turn("user", GOLDEN_TEXT, images=1)])
    slot = next(i for i, segment in enumerate(segments) if isinstance(segment, ImageSlot))
    none = np.empty(0, np.int64)
    clip_ids = None
    for graph in graphs:
        if graph.spec.name == "text_encoder":
            context = graph.spec.input("input_ids").shape[1]
            clip_ids = clip_segments(GOLDEN_TEXT, load_tokenizer(root / "clip_tokenizer.json"), context)
    return reference_run.Question(
        before=np.concatenate([none, *segments[:slot]]),
        after=np.concatenate([none, *segments[slot + 1 :]]),
        words=tokenizer.encode_text(GOLDEN_TEXT),
        clip_ids=clip_ids,
    )
