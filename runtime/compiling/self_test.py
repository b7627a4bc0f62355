"""``foveate check``: test a compiled bundle on this machine, without torch.

Every file is hashed. Then each graph gets the inputs that the build recorded (``golden*.npz``), and its
outputs are compared with torch's in float32: cosine, largest error relative to the largest value, the most
likely token, and the kept tokens. Near-ties are excused. The language model is replayed as it is used: the
prompt at once, then token by token over one kv cache. The cache's first and last layer are compared at the
end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from foveate.engines import topk_logits
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.runtime.bundle.arrays import Archive
from foveate.runtime.bundle.compiled import Plan, choose, compile_command, load_engines
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.cli import Parser, options
from foveate.runtime.llm.segment import Segment
from foveate.runtime.overflow import cause_of

__all__ = ["LIMITS", "Finding", "Limits", "main", "not_finite", "replay", "seen"]


@dataclass(frozen=True)
class Limits:
    """Allowed differences.

    ``cosine`` is the smallest allowed cosine. ``error`` is the largest allowed difference, relative to the
    largest value; logits closer than that are a near-tie. ``swaps`` is the share of kept tokens that may
    differ.
    """

    cosine: float
    error: float
    swaps: float


LIMITS = {
    "float32": Limits(cosine=0.99999, error=1e-3, swaps=0.01),
    "float32, int8": Limits(cosine=0.998, error=0.05, swaps=0.01),
    "float32, int8 unrecorded": Limits(cosine=0.995, error=0.1, swaps=0.01),
    "float16": Limits(cosine=0.999, error=0.03, swaps=0.05),
    "float16, int8": Limits(cosine=0.99, error=0.15, swaps=0.05),
    "float16, fp8": Limits(cosine=0.97, error=0.2, swaps=0.05),
}
"""Limits by the graph's dtype, and by the type to which it rounds activations.

Reference answers were rounded in the same way (``export.bundling.reference_run``), so what is left are values
that fall to the other side of a rounding step. Two kinds of rounding are not in the reference answers: what
ONNX Runtime rounds by itself (int4 products at accuracy level 4), and int8 prompts of a model whose decoding
uses int4.

Worst values seen in ONNX Runtime, with random tiny models of each family and `scripts/shapes` calibrated with
8 samples: error 3e-4 in float32; cosine 0.9996 and error 0.027 for int8 in float32; 0.995 and 0.11 in
float16; 0.98 and 0.17 for fp8. int4 costs a random LLaVA-1.5-7B 0.99976 and 0.033. No GPU has been measured
yet.
"""


@dataclass(frozen=True)
class Finding:
    """The comparison of one output with its reference.

    ``agreement`` is the share of equal tokens, ``excused`` the number of near-ties that were accepted; both
    are None for outputs that hold no choice. ``not_finite`` names the side that holds NaN or infinity,
    "engine" or "recording".
    """

    graph: str
    answer: str
    cosine: float
    error: float
    agreement: float | None
    excused: int | None
    ok: bool
    not_finite: str | None = None


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="foveate check",
        description="Test that a compiled bundle answers correctly on this machine: hash its files, and "
        "replay the reference answers of its build.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    options.add_engine(parser)
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON document (default: print text for people)."
    )
    args = parser.parse_args(argv)
    bundle = load(args.bundle, full=True, progress=lambda name: options.say(f"hashing {name}"))
    plan = choose(bundle, args.engine)
    options.say(f"hashing {plan.key}")
    if fault := plan.fault(bundle, full=True):
        raise UserError(
            f"the engine {plan.key} is damaged | {fault} | {compile_command(bundle, plan)} --force"
        )
    findings = []
    for finding in replay(bundle, plan, args.threads):
        findings.append(finding)
        if not args.json:
            print(_line(finding), flush=True)
    if args.json:
        print(json.dumps(_document(bundle, plan, findings)))
    wrong = next((finding for finding in findings if not finding.ok), None)
    if wrong:
        limits = _limits(bundle, plan, wrong.graph)
        raise not_finite(bundle, plan.dialect, wrong) or UserError(
            f"the graph {wrong.graph} is wrong on this machine "
            f"| {seen(wrong)}, expected {limits.cosine} and {limits.error:g} "
            f"| {compile_command(bundle, plan)} --force"
        )
    if not args.json:
        print(f"fine: {len(bundle.manifest.files)} files, {len(findings)} answers, engine {plan.key}")
    return 0


def replay(bundle: Bundle, plan: Plan, threads: int | None = None) -> Iterator[Finding]:
    """Yield a finding per output of each graph, in the order of the stages.

    Raises UserError if the bundle has no ``golden.npz``, or a damaged one.
    """
    recorded = bundle.golden(plan.dialect)
    if not recorded.is_file():
        raise UserError(
            f"{bundle.path} cannot be checked | it has no {recorded.name} | build the bundle again"
        )
    engines = load_engines(bundle, plan, {"threads": threads})
    with Archive(recorded) as golden:
        for name in bundle.manifest.stages:
            prunes = f"{name}.out.kept" in golden  # the pruners, and a vision encoder that merges
            kind = _replay_segment if name.startswith("llm") else _replay_pruner if prunes else _replay_plain
            yield from kind(name, engines[name], golden, _limits(bundle, plan, name))


def seen(finding: Finding) -> str:
    """Return in words what a finding measured."""
    if finding.not_finite:
        return f"{finding.answer}: NaN or infinity"
    return f"{finding.answer}: cosine {finding.cosine:.6f}, error {finding.error:.2g}"


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


def _limits(bundle: Bundle, plan: Plan, graph: str) -> Limits:
    dialect = bundle.manifest.dialects[plan.dialect]
    dtype, prompts = dialect["dtype"], dialect.get("prefill", {})
    pruning = "prefill" if prompts else "decoder"
    parts = {"vision_encoder": ("vision",), "llm": ("decoder", "head"), "pruner.": (pruning,)}
    read = next((names for start, names in parts.items() if graph.startswith(start)), ())
    kinds = {bundle.manifest.precision[name] for name in read}
    products = dtype == "float32" and "int4" in kinds and plan.options.get("accuracy_level") == 4
    if graph in prompts or products:
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
        yield _compare(
            name, tensor.name, outputs[tensor.name].numpy(), golden[f"{name}.out.{tensor.name}"], limits
        )


def _replay_pruner(name: str, engine: Engine, golden: Golden, limits: Limits) -> Iterator[Finding]:
    outputs = engine.run(_feeds(name, engine, golden))
    got_count, count = int(outputs["count"].numpy()[0]), int(golden[f"{name}.out.count"][0])
    got, kept = outputs["kept"].numpy()[0, :got_count], golden[f"{name}.out.kept"][0, :count]
    differing = max(len(set(got) - set(kept)), len(set(kept) - set(got)), abs(got_count - count))
    rows, expected = outputs["tokens"].numpy()[0], golden[f"{name}.out.tokens"][0]
    if np.array_equal(got, kept):
        pairs = [(i, i) for i in range(count)]
    else:  # compare the rows of tokens that both sides kept; a merged row (-1) has no counterpart then
        where = {patch: i for i, patch in enumerate(got.tolist()) if patch >= 0}
        pairs = [(where[patch], i) for i, patch in enumerate(kept.tolist()) if patch in where]
    mine, theirs = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    finding = _compare(name, "tokens", rows[mine], expected[theirs], limits)
    ok = finding.ok and bool(pairs) and differing <= limits.swaps * count
    yield replace(finding, answer="tokens, kept", agreement=1 - differing / count, excused=differing, ok=ok)


def _replay_segment(name: str, engine: Engine, golden: Golden, limits: Limits) -> Iterator[Finding]:
    rows_name = engine.spec.inputs[0].name
    given = golden[f"{name}.in.{rows_name}"].astype(engine.spec.inputs[0].dtype)
    prompt, total = int(golden[f"{name}.prompt"]), given.shape[1]
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
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, total))]:
        outputs = segment.run(given[:, start:end], positions[..., start:end])
        for tensor in engine.spec.outputs:
            if not tensor.name.startswith("present."):
                answers.setdefault(tensor.name, []).append(outputs[tensor.name].numpy()[0, -1])
        copied |= any(outputs[out] is not segment.cache.feeds()[past] for out, past in engine.spec.in_place)
    assert not copied, "the engine answered with another cache than it was given"
    picked = [
        np.stack(answers.pop(each)) for each in (topk_logits.VALUES, topk_logits.IDS) if each in answers
    ]
    if picked:
        yield _compare_candidates(name, np.stack(answers["logits"]), *picked)
    for output, rows in answers.items():
        compare = _compare_logits if output == "logits" else _compare
        yield compare(name, output, np.stack(rows), golden[f"{name}.out.{output}"], limits)
    for out, past in engine.spec.in_place:
        if f"{name}.out.{out}" in golden:
            got = segment.cache.feeds()[past].numpy()[:, :, :total]
            yield _compare(name, out, got, golden[f"{name}.out.{out}"], limits)


def _compare(graph: str, answer: str, got: np.ndarray, expected: np.ndarray, limits: Limits) -> Finding:
    cosine, error = _distance(got, expected)
    # "not below" rather than "above": NaN fails every comparison
    ok = cosine >= limits.cosine and error <= limits.error
    return Finding(graph, answer, cosine, error, None, None, ok, _not_finite(got, expected))


def _not_finite(got: np.ndarray, expected: np.ndarray) -> str | None:
    """Return the value of ``Finding.not_finite`` for an output."""
    sides = {"recording": expected, "engine": got}
    return next((side for side, values in sides.items() if not np.isfinite(values).all()), None)


def _distance(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return the cosine, and the largest difference relative to the largest expected value."""
    if got.shape != expected.shape:
        return 0.0, float("inf")
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    scale = np.abs(b).max(initial=0.0)
    if not a.size or scale == 0:
        return (1.0, 0.0) if not np.any(a) else (0.0, float("inf"))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0)), float(np.abs(a - b).max() / scale)


def _compare_logits(
    graph: str, answer: str, got: np.ndarray, expected: np.ndarray, limits: Limits
) -> Finding:
    """Compare logits by their worst row.

    Each row must choose the same token, or one that was nearly as likely.
    """
    if got.shape != expected.shape:
        return Finding(graph, answer, 0.0, float("inf"), 0.0, 0, ok=False)
    distances = [_distance(mine, theirs) for mine, theirs in zip(got, expected, strict=True)]
    cosine, error = min(c for c, _ in distances), max(e for _, e in distances)
    chosen, best = got.argmax(axis=1), expected.argmax(axis=1)
    index = np.arange(len(best))
    behind = (expected[index, best] - expected[index, chosen]) / np.abs(expected).max(axis=1)
    other = chosen != best
    tied = other & (behind <= limits.error)
    ok = cosine >= limits.cosine and error <= limits.error and bool((tied == other).all())
    agreement, nan = float(1 - other.mean()), _not_finite(got, expected)
    return Finding(graph, answer, cosine, error, agreement, int(tied.sum()), ok, nan)


def _compare_candidates(graph: str, logits: np.ndarray, values: np.ndarray, ids: np.ndarray) -> Finding:
    """Compare the engine's candidates with its own logits.

    They must be the largest; among equal ones any order.
    """
    expected = -np.sort(-logits, axis=1)[:, : values.shape[1]]
    theirs = np.take_along_axis(logits, ids.clip(0, logits.shape[1] - 1), axis=1)
    distinct = bool(np.diff(np.sort(ids, axis=1), axis=1).all())
    ok = distinct and np.array_equal(values, expected) and np.array_equal(values, theirs)
    distance, nan = _distance(values, expected), _not_finite(values, values)
    return Finding(graph, topk_logits.VALUES, *distance, None, None, ok, nan and "engine")


def _line(finding: Finding) -> str:
    line = f"{finding.graph:<16}{finding.answer:<24}cosine {finding.cosine:.6f}  error {finding.error:8.2e}"
    if finding.not_finite:
        line += "  NaN or infinity"
    elif finding.agreement is not None:
        line += f"  agreement {finding.agreement:.1%}, {finding.excused} excused"
    return line + ("" if finding.ok else "  WRONG")


def _document(bundle: Bundle, plan: Plan, findings: list[Finding]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "engine": plan.key,
        "files": len(bundle.manifest.files),
        "ok": all(finding.ok for finding in findings),
        "limits": {name: asdict(_limits(bundle, plan, name)) for name in bundle.manifest.stages},
        "findings": [_plain(finding) for finding in findings],
    }


def _plain(finding: Finding) -> dict[str, Any]:
    """Return a finding for JSON, with None in place of NaN and infinity, which JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(finding).items()
    }
