"""Write the graphs of a bundle: ONNX files per dialect, and the weights that they share."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from foveate.calib.schemes.quantized import Form, PartName
from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export import lowering
from foveate.export.bundling.graph_weights import Reading, attach, parts_of, pending, require_ranges
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.reference.ranges import MARGIN, Peak, Ranges
from foveate.export.bundling.weight_store import Store
from foveate.export.checkpoints.layered_weights import LayeredWeights, TensorWeights, packed
from foveate.export.graphs import trace
from foveate.export.graphs.graph import Graph
from foveate.export.model_parts import ModelParts
from foveate.export.networks.decoder import rope_tables
from foveate.runtime.bundle.manifest import DialectFiles
from foveate.runtime.overflow import FLOAT16_MAX

__all__ = ["Progress", "Written", "widen", "write_graphs"]

Progress = Callable[[str, int, int], None]
"""Function that shows progress. Arguments: the current work in words, the finished and the total amount."""


@dataclass(frozen=True)
class _Lowered:
    """A graph in one dialect, in memory. ``prefill``: in its second form, for prompts."""

    graph: Graph
    model: ir.Model
    path: Path
    dialect: str
    form: Form
    needs: list[tuple[str, str]]  # (weight, encoding)
    store: Store
    prefill: bool = False


@dataclass(frozen=True)
class Written:
    """The written graphs of a bundle.

    ``readings`` holds the effective weights by reference file. ``dialects`` is that of bundle.json.
    """

    readings: dict[str, Reading]
    dialects: dict[str, DialectFiles]
    lowered: list[_Lowered]
    statistics: Statistics | None


def write_graphs(
    root: Path,
    parts: ModelParts,
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
    tables = dict(zip(("llm.rope_cos", "llm.rope_sin"), rope_tables(parts.spec.decoder), strict=True))
    first = Store(root, LayeredWeights(TensorWeights(tables), parts.weights))
    second = Store(root, first)
    schemes = {first: precision.choose(packed(parts.weights)), second: precision.prefilling.choose()}
    forms = {name: lowering.form(name, precision.decoder) for name in dialects}

    def held(graph: Graph, model: ir.Model, name: str, store: Store, prefill: bool = False) -> _Lowered:
        needs = list(pending(model, schemes[store]))
        require_ranges(needs, forms[name], statistics)
        path = root / f"{graph.spec.name}{'.prefill' if prefill else ''}.{name}.onnx"
        return _Lowered(graph, model, path, name, forms[name], needs, store, prefill)

    lowered = []
    for graph, name, model in _traced(graphs, forms, progress):
        twice = precision.prefill is not None and forms[name].dynamic
        prompts_alone = twice and graph.spec.name.startswith("pruner.")
        lowered.append(held(graph, model, name, second if prompts_alone else first))
        if twice and graph.spec.in_place:
            lowered.append(held(graph, model.clone(), name, second, prefill=True))
    known = _write_weights(first, lowered, progress)
    _write_weights(second, lowered, progress, known)
    for item in lowered:
        attach(item.model, item.store, item.needs, item.form, statistics)
        ir.save(item.model, item.path)
    readings, index = {}, {}
    for name in dict.fromkeys(item.dialect for item in lowered):
        mine = [item for item in lowered if item.dialect == name]
        reading = _reading([item for item in mine if not item.prefill], first, statistics)
        dynamic = reading.form is not None and reading.form.dynamic
        kind = ("dynamic." if dynamic else "static.") if reading.rounds else ""
        golden = f"golden.{kind}npz"
        index[name] = _files(mine, golden, lowering.load(name).appends)
        readings[golden] = reading if kind else Reading(first)
    return Written(readings, index, lowered, statistics)


def _traced(
    graphs: list[Graph], forms: dict[str, Form], progress: Progress
) -> Iterator[tuple[Graph, str, ir.Model]]:
    """Yield each graph in each dialect of ``forms``. A graph is traced once per dtype."""
    jobs = [(graph, dtype) for graph in graphs for dtype in sorted({form.dtype for form in forms.values()})]
    for done, (graph, dtype) in enumerate(jobs):
        progress(f"tracing {graph.spec.name} in {dtype}", done, len(jobs))
        model = trace.trace(graph, dtype)
        for name in (each for each in forms if forms[each].dtype == dtype):
            yield graph, name, lowering.lower(model, graph.spec, name)


def _files(lowered: list[_Lowered], golden: str, appends: bool) -> DialectFiles:
    """Return the entry in bundle.json of the dialect whose graphs are ``lowered``."""
    first, second = (
        {item.graph.spec.name: item.path.name for item in lowered if item.prefill is prefill}
        for prefill in (False, True)
    )
    dtype: Literal["float16", "float32"] = "float16" if lowered[0].form.dtype == "float16" else "float32"
    return DialectFiles(dtype, first, second, golden, appends=appends)


def _reading(lowered: list[_Lowered], first: Store, statistics: Statistics | None) -> Reading:
    """Return the effective weights of a dialect's graphs.

    Graphs with another store than ``first`` are in-LLM pruners.
    """

    def of(items: list[_Lowered]) -> Reading:
        needs = dict(pair for item in items for pair in item.needs)
        return Reading(items[0].store, items[0].form, needs, statistics)

    pruners = [item for item in lowered if item.store is not first]
    found = of([item for item in lowered if item.store is first])
    return replace(found, pruning=of(pruners)) if pruners else found


def _write_weights(
    store: Store, lowered: list[_Lowered], progress: Progress, known: Container[tuple[str, str]] = ()
) -> Container[tuple[str, str]]:
    """Write the (weight, encoding) pairs that the graphs of ``store`` need, and return them.

    Those that are ``known`` are left out.
    """
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


_FLOAT32 = "build with --dialects ort and --precision int4, int8 or fp32, which compute in float32"


def widen(root: Path, written: Written, ranges: Ranges, say: Callable[[str], None], asked: bool) -> Written:
    """Rewrite float16 graphs whose values float16 cannot hold, and return what is written now.

    Such a graph is written again in float32, with inputs and outputs in float16
    (``common_passes.Float16Edges``), and listed under "widened" in its dialect's entry. A dialect whose
    inputs, outputs or kv caches are too large is left out. ``say`` is told about both. Raises UserError when
    no dialect is left, and instead of leaving one out if the dialects were ``asked`` for by name.
    """
    index: dict[str, DialectFiles] = {}
    left_out: dict[str, str] = {}
    for dialect, entry in written.dialects.items():
        edges = (ranges.first_too_wide(name, edge=True) for name in entry.files)
        peak = next(filter(None, edges), None) if entry.dtype == "float16" else None
        if peak is None:
            index[dialect] = _widened(dialect, entry, written, ranges, say)
            continue
        left_out[dialect] = _too_wide(peak)
        if asked:
            raise UserError(
                f"the dialect {dialect} cannot hold what the model computes | {left_out[dialect]} "
                f"| {_FLOAT32}, or leave --dialects out: the bundle then has the dialects that can"
            )
        say(f"the dialect {dialect} is left out: {left_out[dialect]}")
    if not index:
        raise UserError(
            "no dialect of this bundle can hold what the model computes "
            f"| {next(iter(left_out.values()))} | {_FLOAT32}"
        )
    for dialect in left_out:
        for file in written.dialects[dialect].paths:
            (root / file).unlink()
    kept = {entry.golden for entry in index.values()}
    for golden in {entry.golden for entry in written.dialects.values()} - kept:
        (root / golden).unlink()
    return replace(written, dialects=index)


def _widened(
    dialect: str, entry: DialectFiles, written: Written, ranges: Ranges, say: Callable[[str], None]
) -> DialectFiles:
    """Rewrite the graphs of one dialect that need it, and return its new entry."""
    peaks = {name: ranges.first_too_wide(name, edge=False) for name in entry.files}
    wide = {name: peak for name, peak in peaks.items() if peak and entry.dtype == "float16"}
    for item in written.lowered:
        if item.dialect == dialect and item.graph.spec.name in wide:
            _write_widened(item, written.statistics)
    for name, peak in wide.items():
        say(f"{name} of {dialect} is written in float32: {_too_wide(peak)}")
    return replace(entry, widened=dict.fromkeys(wide, "float32"))


def _too_wide(peak: Peak) -> str:
    limit = f"float16 holds numbers up to {FLOAT16_MAX:g}"
    if peak.value > FLOAT16_MAX:
        return f"{peak} reaches {peak.value:.3g}, {limit}"
    return (
        f"{peak} reaches {peak.value:.3g} in the one prompt that is recorded, {limit}, "
        f"of which 1/{MARGIN:g} is used"
    )


def _write_widened(item: _Lowered, statistics: Statistics | None) -> None:
    """Write the graph in float32 with inputs and outputs in float16.

    Weights stored in float16 are cast in the graph.
    """
    model = lowering.lower(trace.trace(item.graph, "float32"), item.graph.spec, item.dialect, widened=True)
    form = replace(item.form, dtype="float32")
    parts = {need: item.store.missing(need[0], parts_of(need[1], form)) for need in item.needs}
    item.store.write({need: missing for need, missing in parts.items() if missing})
    attach(model, item.store, item.needs, form, statistics)
    ir.save(model, item.path)
