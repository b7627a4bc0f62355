"""Test the four systems' own claims on the small checkpoint: the contribution of each part of a method.

feather   FEATHER against FastV on location questions, both with and without rotary embedding in the score
bias      the share of visual tokens that FastV removes from each quarter of the image, with and without it
fsr       focus, scan and refine switched off one by one
sppruner  focus and context switched off one by one, and the parts of each
ocvtp     reconstruction error of its tokens against random and uniform ones; the share of tokens from slots

Differences are between answers to the same questions, with the 95 % interval of a paired difference. Answers
are stored and shared with scripts/accuracy.py. Prints Markdown tables; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from evaluation.arguments import add_questions, add_work
from evaluation.bundles import ready_bundle
from evaluation.compare import answer_all
from evaluation.report import wilson
from evaluation.scenes import PER_SCENE, UNPRUNED, Plan, held_out
from foveate.calib.scenes.questions import KINDS
from foveate.runtime.pipeline import Pipeline

QUARTERS = 4
# This decoder has 4 layers. FEATHER's first cut is before layer 1.
# FastV's published cut, layer 2, is half way.
FEATHER = {
    "feather": "FEATHER",
    "feather:rope=true": "FEATHER with rotary embedding in the score",
    "feather:stride=0": "FEATHER without the grid",
    "fastv:layer=1": "FastV, cut where FEATHER is cut first",
    "fastv:layer=1,rope=false": "the same without rotary embedding",
    "fastv": "FastV as published",
}
FSR = {
    "fsr": "all three parts",
    "fsr:rho=0": "focus off: one token, the rest is scan",
    "fsr:rho=1": "scan off, and with it refine: the best by phi",
    "fsr:kappa=0": "refine off: nothing is merged",
    "fsr:alpha=0": "focus without relevance",
    "fsr:beta=0": "focus without saliency",
}
SPPRUNER = {
    "sppruner": "both parts",
    "sppruner:rho=0": "focus off: sampling alone",
    "sppruner:rho=1": "context off: the best by phi",
    "sppruner:relevance=none": "focus without relevance",
    "sppruner:eta=0": "focus without the product of the cues",
    "sppruner:gamma=0": "context at an even stride",
    "sppruner:proximity=0": "context that does not know the focus",
    "sppruner:mu=0.5": "context tokens moved half way to the mean of their run",
}

Records = dict[tuple[int, int, int], dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "claims", nargs="*", choices=[[], *CLAIMS], metavar="CLAIM", help="Claims to test (default: all)."
    )
    add_questions(parser)
    parser.add_argument(
        "--images", type=int, default=200, help="Number of images for bias and ocvtp (default: 200)."
    )
    old_name = {"type": int, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--pictures", dest="images", **old_name)
    add_work(parser)
    args = parser.parse_args(argv)
    plan = Plan(args.model, args.work, tuple(args.budgets), args.questions, KINDS, args.first_seed)
    results = {name: CLAIMS[name](plan, args) for name in args.claims or CLAIMS}
    print(json.dumps(results, separators=(",", ":")))
    return 0


def feather(plan: Plan, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare FEATHER and FastV on location questions, and on all other kinds.

    The tables state the cost, since the same budget costs differently in both.
    """
    others = tuple(kind for kind in KINDS if kind != "location")
    rows = [
        {"questions": "location", **row}
        for row in ablation(replace(plan, kinds=("location",)), FEATHER, "fastv:layer=1")
    ]
    rows += [
        {"questions": "other", **row}
        for row in ablation(replace(plan, kinds=others), FEATHER, "fastv:layer=1")
    ]
    for kind in ("location", "other"):
        which = "kind location" if kind == "location" else "all other kinds"
        title = f"FEATHER against FastV, questions of {which}"
        show(title, [row for row in rows if row["questions"] == kind], "`fastv:layer=1`")
    return rows


def fsr(plan: Plan, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = ablation(plan, FSR, "fsr")
    show("FSR: parts switched off", rows, "all three")
    return rows


def sppruner(plan: Plan, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = ablation(plan, SPPRUNER, "sppruner")
    show("SPpruner: parts switched off", rows, "both")
    return rows


def ablation(plan: Plan, variants: Mapping[str, str], reference: str) -> list[dict[str, Any]]:
    """Return a row per variant and budget: share of right answers, and the difference to ``reference``."""
    answers, failures = answer_all(plan, [UNPRUNED, *variants], 2)
    if failures:
        raise SystemExit(1)
    whole = _mean(record["flops"] for record in answers[UNPRUNED])
    cases = {name: _by_budget(records) for name, records in answers.items()}
    rows = []
    for name, what in variants.items():
        for keep in sorted(cases[name], reverse=True):
            mine, theirs = cases[name][keep], cases[reference][keep]
            right = sum(record["right"] for record in mine.values())
            rows.append(
                {
                    "variant": name,
                    "what": what,
                    "keep": keep,
                    "accuracy": right / len(mine),
                    "interval": wilson(right, len(mine)),
                    "difference": paired(mine, theirs) if name != reference else None,
                    "tokens": _mean(record["tokens"] for record in mine.values()),
                    "flops": _mean(record["flops"] for record in mine.values()) / whole,
                    "asked": len(mine),
                }
            )
    return rows


def _by_budget(records: Sequence[dict[str, Any]]) -> dict[int, dict[tuple[int, int], dict[str, Any]]]:
    cases: dict[int, dict[tuple[int, int], dict[str, Any]]] = {}
    for record in records:
        cases.setdefault(record["keep"], {})[record["seed"], record["index"]] = record
    return cases


def paired(
    mine: Mapping[Any, Mapping[str, Any]], theirs: Mapping[Any, Mapping[str, Any]]
) -> tuple[float, float, float]:
    """Return the difference of two shares of right answers to the same questions, and its 95 % interval.

    The interval is Wald's, from the discordant pairs.
    """
    gained = sum(mine[key]["right"] and not theirs[key]["right"] for key in mine)
    lost = sum(theirs[key]["right"] and not mine[key]["right"] for key in mine)
    size, difference = len(mine), (gained - lost) / len(mine)
    half = 1.96 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / size)) / size
    return difference, difference - half, difference + half


def show(title: str, rows: Sequence[Mapping[str, Any]], reference: str) -> None:
    """Print a table per budget."""
    for keep in sorted({row["keep"] for row in rows}, reverse=True):
        at = [row for row in rows if row["keep"] == keep]
        print(f"\n### {title}: {keep} tokens asked for, {at[0]['asked']} questions\n")
        print(
            f"| variant | what | right, % | against {reference}, points "
            f"| tokens, mean over layers | FLOPs, % |\n|{'---|' * 6}"
        )
        for row in at:
            low, high = row["interval"]
            share = f"{100 * row['accuracy']:.1f} ({100 * low:.1f}..{100 * high:.1f})"
            apart = row["difference"]
            change = "{:+.1f} ({:+.1f}..{:+.1f})".format(*(100 * v for v in apart)) if apart else ""
            cost = f"{row['tokens']:.1f} | {100 * row['flops']:.1f}"
            print(f"| `{row['variant']}` | {row['what']} | {share} | {change} | {cost} |")


def bias(plan: Plan, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the share of visual tokens that FastV removes from each quarter of the image.

    Things are evenly spread in these scenes.
    """
    variants = ("fastv:layer=1", "fastv:layer=1,rope=false", "fastv", "fastv:rope=false")
    rows = [row for variant in variants for row in _removed(plan, variant, args.images)]
    print("\n### FastV: share of the tokens removed from each quarter of the image, %\n")
    print(
        "| variant | tokens asked for | top | upper middle | lower middle | bottom |\n"
        "|---|---|---|---|---|---|"
    )
    for row in rows:
        shares = " | ".join(f"{100 * share:.1f}" for share in row["removed"])
        print(f"| `{row['variant']}` | {row['keep']} | {shares} |")
    return rows


def _removed(plan: Plan, variant: str, images: int) -> list[dict[str, Any]]:
    pipe = Pipeline.load(ready_bundle(plan.model, variant, plan.folder), threads=1)
    rows, columns = pipe.manifest.grid
    keeps = plan.keeps(variant, pipe.manifest)
    stays = np.zeros((len(keeps), QUARTERS))
    scenes = held_out(images, plan.first_seed, ("location",))  # some have two such questions
    for asked in track(scenes, variant, transient=True):
        seen = pipe.see(asked.scene.image)
        for at, keep in enumerate(keeps):
            said = pipe.generate(seen, asked.questions[0][1].text, keep=keep, max_new_tokens=1)
            stays[at] += quarters(said.stages[0]["pruner.0"], rows, columns)
    each = len(scenes) * quarters(np.arange(rows * columns), rows, columns)
    return [
        {"variant": variant, "keep": keep, "removed": (1 - kept / each).tolist(), "images": len(scenes)}
        for keep, kept in zip(keeps, stays, strict=True)
    ]


def quarters(kept: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Count the patches ``kept`` in each quarter of a grid, from the top: [4]."""
    return np.bincount(kept // columns * QUARTERS // rows, minlength=QUARTERS)


def ocvtp(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Measure OC-VTP's reconstruction errors.

    They are shares of the variance of the features that the network reads; 0 means nothing is lost.
    """
    from training.ocvtp import decoder as decoders
    from training.ocvtp.features import encode

    scenes = held_out(args.images * PER_SCENE, plan.first_seed, KINDS)
    features = encode(plan.model, (asked.scene.image for asked in scenes))
    pruner, decoder = decoders.load(Path(plan.model))
    rows = []
    for variant in ("ocvtp", "uniform", "random", "divprune"):
        pipe = Pipeline.load(ready_bundle(plan.model, variant, plan.folder), threads=1)
        for keep in plan.keeps(variant, pipe.manifest):
            kept = _kept(pipe, [asked.scene.image for asked in scenes], keep)
            row = {
                "selection": variant,
                "keep": keep,
                "nearest_error": decoders.nearest_error(features, kept),
            }
            if variant == "ocvtp":
                row["slot_share"] = decoders.slot_share(pruner, features, keep)
            rows.append(row)
    print(f"\n### OC-VTP: what its tokens tell of the others, {len(scenes)} images\n")
    print(
        "| tokens | selection | error of the nearest kept token | of its tokens, from slots |\n"
        "|---|---|---|---|"
    )
    for row in sorted(rows, key=lambda row: -row["keep"]):
        share = f"{100 * row['slot_share']:.1f} %" if "slot_share" in row else ""
        print(f"| {row['keep']} | {row['selection']} | {row['nearest_error']:.3f} | {share} |")
    grid, told = pipe.manifest.grid, {}
    print(
        "\n| slots | error of the decoder | when slots look at their picks "
        "| at uniform tokens | at random ones |"
    )
    print("|---|---|---|---|---|")
    for keep in sorted({row["keep"] for row in rows}, reverse=True):
        told[keep] = decoders.reconstruction_errors(pruner, decoder, features, keep, grid=grid)
        shown = (told[keep][kind] for kind in ("slots", "picks", "uniform", "random"))
        print(f"| {keep} | {' | '.join(f'{error:.3f}' for error in shown)} |")
    return {"selections": rows, "decoder": told}


def _kept(pipe: Pipeline, images: Sequence[Any], keep: int) -> Any:
    """Return the positions [P,keep] that the bundle keeps of each image. These methods read no question."""
    import torch

    answers = (pipe.generate(image, "?", keep=keep, max_new_tokens=1) for image in images)
    return torch.from_numpy(np.stack([said.kept[0] for said in answers]))


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


CLAIMS: dict[str, Callable[[Plan, argparse.Namespace], Any]] = {
    "feather": feather,
    "bias": bias,
    "fsr": fsr,
    "sppruner": sppruner,
    "ocvtp": ocvtp,
}
