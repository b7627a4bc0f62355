"""Tests the engines of a bundle on this machine, without torch: the reference answers are replayed.

Each graph gets the inputs that the build recorded (``golden*.npz``), and its outputs are compared with
torch's in float32: cosine, largest error relative to the largest value, the most likely token, and the kept
tokens. Near-ties are excused; those of pruners were found by the build
(``export.bundling.reference.near_ties``). The language model is replayed as it is used: the prompt at once
and then token by token over one kv cache, and once more the prompt in pieces. The cache's first and last
layer are compared at the end of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from foveate.engines import topk_logits
from foveate.engines.engine import Engine
from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.targets import backend
from foveate.runtime.bundle.arrays import Archive
from foveate.runtime.bundle.compiled import CompiledEngine, load_engine
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling.comparison import (
    LIMITS,
    Finding,
    Kept,
    Limits,
    NearTies,
    compare,
    compare_candidates,
    compare_kept,
    compare_logits,
)
from foveate.runtime.llm.segment import Segment
from foveate.runtime.overflow import cause_of

__all__ = ["BrokenError", "limits_in", "limits_of", "not_finite", "recorded", "replay", "seen"]


def replay(bundle: Bundle, made: CompiledEngine, threads: int | None = None) -> Iterator[Finding]:
    """Yield a finding per output of each graph, in the order of the stages.

    Raises UserError if the bundle has no ``golden.npz``, or a damaged one, and BrokenError if a graph fails.
    """
    file = recorded(bundle, made.dialect)
    engines = {}
    for name in bundle.manifest.stages:
        with _named(name):
            engines[name] = load_engine(bundle, made, name, {"threads": threads})
    with Archive(file) as golden:
        for name in bundle.manifest.stages:
            prunes = f"{name}.out.kept" in golden  # the pruners, and a vision encoder that merges
            kind = _replay_segment if name.startswith("llm") else _replay_pruner if prunes else _replay_plain
            with _named(name):
                yield from kind(name, engines[name], golden, limits_of(bundle, made, name))


class BrokenError(UserError):
    """A graph that cannot be loaded or fails while it runs. ``graph`` is its name."""

    def __init__(self, graph: str, error: Exception) -> None:
        why = ", ".join(str(error).split(" | ")[:2])
        super().__init__(
            f"the graph {graph} fails on this machine | {why} "
            "| compile again with --force, or for another target"
        )
        self.graph, self.why = graph, why


@contextlib.contextmanager
def _named(graph: str) -> Iterator[None]:
    """Raise what an engine fails with as a ``BrokenError``. Memory that runs out is no fault of the graph."""
    try:
        yield
    except MemoryError as error:
        raise NoMemoryError(
            f"no memory to test the graph {graph} | {error} | close other programs, or --no-self-test"
        ) from error
    except (RefusedError, RuntimeError) as error:
        raise BrokenError(graph, error) from error


def recorded(bundle: Bundle, dialect: str) -> Path:
    """Return the file with the reference answers of a dialect. Raises UserError if there is none."""
    file = bundle.golden(dialect)
    if not file.is_file():
        raise UserError(f"{bundle.path} cannot be checked | it has no {file.name} | build the bundle again")
    return file


def seen(finding: Finding) -> str:
    """Return in words what a finding measured."""
    if finding.not_finite:
        return f"{finding.answer}: NaN or infinity"
    told = f"{finding.answer}: cosine {finding.cosine:.6f}, error {finding.error:.2g}"
    if finding.agreement is not None:
        told += f", {finding.agreement:.1%} the same choice"
    return told


def not_finite(bundle: Bundle, dialect: str, finding: Finding) -> UserError | None:
    """Return the error for a graph that gives NaN or infinity.

    None if the recorded ranges do not explain it.
    """
    if not finding.not_finite:
        return None
    cause = cause_of(bundle, dialect, finding.graph, recorded=finding.not_finite == "recording")
    if cause is None:
        return None
    return UserError(
        f"the graph {finding.graph} answers NaN or infinity ({finding.answer}) "
        f"| {cause.what} | {cause.remedy}"
    )


def limits_of(bundle: Bundle, made: CompiledEngine, graph: str) -> Limits:
    """Return the limits for a graph of a compiled engine. See ``limits_in``."""
    rounds = backend(made.target).rounds_activations(made.options)
    return limits_in(bundle, made.dialect, graph, rounds_activations=rounds)


def limits_in(bundle: Bundle, name: str, graph: str, *, rounds_activations: bool = False) -> Limits:
    """Return the limits for a graph in the dialect ``name``.

    They follow from its dtype, and from the rounding of the precisions that it reads. ``rounds_activations``:
    the engine rounds by itself (``Backend.rounds_activations``).
    """
    dialect = bundle.manifest.dialects[name]
    dtype, prompts, precision = dialect.dtype, dialect.prefill, bundle.manifest.precision
    pruning = precision.prefill if prompts else precision.decoder
    parts: dict[str, set[str | None]] = {
        "vision_encoder": {precision.vision},
        "llm": {precision.decoder, precision.head},
        "pruner.": {pruning},
    }
    read = (kinds for start, kinds in parts.items() if graph.startswith(start))
    kinds = next(read, set())
    int4_in_float32 = dtype == "float32" and "int4" in kinds
    if graph in prompts or (int4_in_float32 and rounds_activations):
        return LIMITS["float32, int8 unrecorded"]
    rounded = next((kind for kind in ("fp8", "int8") if kind in kinds), None)
    return LIMITS[f"{dtype}, {rounded}" if rounded else dtype]


Golden = Archive | Mapping[str, np.ndarray]


def _feeds(name: str, engine: Engine, golden: Golden) -> dict[str, np.ndarray]:
    return {
        tensor.name: golden[f"{name}.in.{tensor.name}"].astype(tensor.dtype) for tensor in engine.spec.inputs
    }


def _replay_plain(name: str, engine: Engine, golden: Golden, limits: Limits) -> Iterator[Finding]:
    outputs = engine.run(_feeds(name, engine, golden))
    for tensor in engine.spec.outputs:
        yield compare(
            name, tensor.name, outputs[tensor.name].numpy(), golden[f"{name}.out.{tensor.name}"], limits
        )


def _replay_pruner(name: str, engine: Engine, golden: Golden, limits: Limits) -> Iterator[Finding]:
    outputs = engine.run(_feeds(name, engine, golden))
    got_count, count = int(outputs["count"].numpy()[0]), int(golden[f"{name}.out.count"][0])
    got = Kept(outputs["kept"].numpy()[0, :got_count], outputs["tokens"].numpy()[0, :got_count])
    expected = Kept(golden[f"{name}.out.kept"][0, :count], golden[f"{name}.out.tokens"][0, :count])
    never = {"kept_noise": np.zeros(0), "tokens_noise": np.full(count, np.inf)}
    noises = [golden[f"{name}.{key}"] if f"{name}.{key}" in golden else never[key] for key in never]
    ties = NearTies(*(np.flatnonzero(noise <= limits.noise) for noise in noises))
    yield compare_kept(name, got, expected, ties, limits)


_SINGLE_ROWS = 4
"""Number of rows of a prompt in pieces that are computed one at a time, if the prompt is long enough."""


def _pieces(prompt: int) -> list[tuple[int, int]]:
    """Return the begin and the end of each piece of a prompt of ``prompt`` rows.

    The first row comes alone, on an empty cache. Then follow a piece up to the middle, ``_SINGLE_ROWS`` rows
    one at a time, and the rest. So pieces and single rows follow on each other in every order. The prompt
    ends with a piece of many rows, so that a mask from the wrong corner hides much from its last row. All
    pieces together take the time of one more prompt, and of a few tokens.
    """
    middle = prompt // 2
    single = range(middle, middle + min(_SINGLE_ROWS, prompt // 4) + 1)
    return list(pairwise(sorted({0, min(1, middle), *single, prompt})))


def _split(pieces: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Yield ``pieces`` in parts of at most ``most`` rows."""
    for start, end in pieces:
        for begin in range(start, end, most):
            yield begin, min(begin + most, end)


def _replay_segment(name: str, engine: Engine, golden: Golden, limits: Limits) -> Iterator[Finding]:
    """Replay a segment twice, each time on an empty cache.

    First the prompt at once, and then each forced token by itself, as when an answer is generated. Second the
    prompt in pieces. Segments before a pruner get both, too: a first prompt with an image comes at once
    there, but later turns of a chat follow on its cache.
    """
    total = golden[f"{name}.in.{engine.spec.inputs[0].name}"].shape[1]
    prompt = int(golden[f"{name}.prompt"])
    steps = [(row, row + 1) for row in range(prompt, total)]
    yield from _replay_rows(name, engine, golden, limits, [(0, prompt), *steps])
    for finding in _replay_rows(name, engine, golden, limits, _pieces(prompt)):
        yield replace(finding, answer=f"{finding.answer}, in pieces")


def _replay_rows(
    name: str, engine: Engine, golden: Golden, limits: Limits, pieces: list[tuple[int, int]]
) -> Iterator[Finding]:
    """Compute the rows of a segment in ``pieces``, and yield a finding per output.

    The last row of the prompt, those after it and the cache are compared. Pieces of more rows than the engine
    takes at once are split, as the runtime does.
    """
    rows_name = engine.spec.inputs[0].name
    given = golden[f"{name}.in.{rows_name}"].astype(engine.spec.inputs[0].dtype)
    prompt, total = int(golden[f"{name}.prompt"]), pieces[-1][1]
    segment = Segment(engine)
    if segment.cache.limit < total:
        raise UserError(
            f"the engine's cache is too short to be checked "
            f"| it has {segment.cache.limit} rows, expected {total} "
            "| compile with a larger --max-context"
        )
    segment.cache.reserve(total)
    positions = golden[f"{name}.in.position_ids"][..., 0, :]
    answers: dict[str, list[np.ndarray]] = {}
    copied = False
    for start, end in _split(pieces, engine.spec.most_rows):
        outputs = segment.run(given[:, start:end], positions[..., start:end])
        for tensor in engine.spec.outputs:
            if end >= prompt and not tensor.name.startswith("present."):
                answers.setdefault(tensor.name, []).append(outputs[tensor.name].numpy()[0, -1])
        copied |= any(outputs[out] is not segment.cache.feeds()[past] for out, past in engine.spec.in_place)
    assert not copied, "the engine answered with another cache than it was given"
    picked = [
        np.stack(answers.pop(each)) for each in (topk_logits.VALUES, topk_logits.IDS) if each in answers
    ]
    if picked:
        yield compare_candidates(name, np.stack(answers["logits"]), *picked)
    for output, rows in answers.items():
        how = compare_logits if output == "logits" else compare
        yield how(name, output, np.stack(rows), golden[f"{name}.out.{output}"][: len(rows)], limits)
    for out, past in engine.spec.in_place:
        if f"{name}.out.{out}" in golden:
            got = segment.cache.feeds()[past].numpy()[:, :, :total]
            yield compare(name, out, got, golden[f"{name}.out.{out}"][:, :, :total], limits)
