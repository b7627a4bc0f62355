"""Accuracy of pruning methods on held-out synthetic scenes, through exported graphs and the runtime.

    python scripts/accuracy.py --model scripts/shapes --methods sppruner uniform random --questions 1000

A variant is a method with options: ``sppruner``, ``sppruner:relevance=clip,rho=0.7``. Every variant answers the same
questions at every budget. Answers are kept in ``--work`` as they come, so a run that is stopped goes on where it was.
Prints a table for people; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from foveate.calib.scenes import HELD_OUT, KINDS, Question, Scene, make_scene, questions
from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

ALL = "100%"
PER_SCENE = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scripts/shapes", help="checkpoint directory or name")
    parser.add_argument(
        "--methods", nargs="+", default=["sppruner", "uniform", "random"], metavar="METHOD[:K=V,...]"
    )
    parser.add_argument("--budgets", nargs="+", default=["33.3%", "22.2%", "11.1%", "5.6%"])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--first-seed", type=int, default=HELD_OUT, help="tune options on other seeds than those reported"
    )
    parser.add_argument("--work", type=Path, default=Path("bundles/accuracy"))
    parser.add_argument("--threads", type=int, help="of the engine; 1 is quickest for a small model")
    args = parser.parse_args()
    args.work /= _identity(args.model)
    asked = list(held_out(args.questions, args.first_seed, set(args.kinds)))
    cases = [("none", ALL), *((variant, budget) for variant in args.methods for budget in args.budgets)]
    results = {case: answer(args, *case, asked) for case in cases}
    report(results, args)


def held_out(count: int, first_seed: int, kinds: set[str]) -> Iterator[tuple[int, Scene, Question]]:
    """``count`` questions on scenes that training never saw, with a number of their own."""
    seed, made = first_seed, 0
    while made < count:
        scene = make_scene(seed)
        for question in questions(scene, np.random.default_rng(seed), PER_SCENE):
            if question.kind in kinds and made < count:
                yield made, scene, question
                made += 1
        seed += 1


def answer(
    args: argparse.Namespace, variant: str, budget: str, asked: list[tuple[int, Scene, Question]]
) -> list[dict]:
    """One record per question; those already on disk are not asked again."""
    path = args.work / f"{_slug(variant)}@{budget}.{args.first_seed}.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if len(known) < len(asked):
        pipe = Pipeline.load(bundle(args, variant), threads=args.threads)
        with path.open("a") as log:
            for number, scene, question in track(
                asked[len(known) :], f"{variant} at {budget}", transient=True
            ):
                keep = None if budget == ALL else budget
                said = pipe.generate(scene.picture, question.text, keep=keep, max_new_tokens=8)
                right = said.text.strip().lower() == question.answer.lower()
                record = {"number": number, "kind": question.kind, "right": right, "said": said.text.strip()}
                log.write(json.dumps(record) + "\n")
                known.append(record)
    return [record for record in known[: len(asked)] if record["kind"] in args.kinds]


def bundle(args: argparse.Namespace, variant: str) -> Path:
    """The variant's bundle in float32, built once per work directory."""
    out = args.work / f"{Path(args.model).name}.{_slug(variant)}"
    if not (out / "bundle.json").is_file():
        name, _, options = variant.partition(":")
        pairs = dict(pair.split("=", 1) for pair in options.split(",") if pair)
        build(models.load(args.model), methods.load(name, pairs), out, precision="fp32", dialects=["ort"])
    compile_bundle(out)
    return out


def _identity(model: str) -> str:
    """Answers of another training run are not taken for this one's."""
    files = sorted(Path(model).glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8] if files else "hub"
    return f"{Path(model).name}-{digest}"


def _slug(variant: str) -> str:
    return variant.replace(":", ".").replace(",", ".").replace("=", "-")


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return middle - half, middle + half


def report(results: dict[tuple[str, str], list[dict]], args: argparse.Namespace) -> None:
    kinds = [kind for kind in KINDS if kind in args.kinds]
    rows: list[dict[str, Any]] = []
    print(f"| method | tokens | all (95 %) | {' | '.join(kinds)} |\n|{'---|' * (3 + len(kinds))}")
    for (variant, budget), records in results.items():
        by_kind = defaultdict(list)
        for record in records:
            by_kind[record["kind"]].append(record["right"])
        total = sum(record["right"] for record in records)
        low, high = wilson(total, len(records))
        shares = {kind: sum(by_kind[kind]) / max(1, len(by_kind[kind])) for kind in kinds}
        cells = " | ".join(f"{100 * share:.1f}" for share in shares.values())
        share = total / len(records)
        print(f"| {variant} | {budget} | {100 * share:.1f} ({100 * low:.1f}..{100 * high:.1f}) | {cells} |")
        rows.append(
            {"method": variant, "budget": budget, "accuracy": share, "interval": [low, high], "kinds": shares}
        )
    counts = {kind: len([r for r in next(iter(results.values())) if r["kind"] == kind]) for kind in kinds}
    print(f"questions: {counts}", file=sys.stderr)
    print(
        json.dumps({"model": str(args.model), "first_seed": args.first_seed, "counts": counts, "rows": rows})
    )


if __name__ == "__main__":
    main()
