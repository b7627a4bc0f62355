"""Fit the efficiencies of ``foveate plan`` to published measurements, and print the errors on held-out ones.

``python scripts/fit_plan.py`` prints for each stage the fit and its errors: when each row is left out, when
each device is left out, and on measurements of other engines and people. ``--write`` writes
``jetson/data/efficiency.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foveate.jetson.device.devices import device
from foveate.jetson.planner import roofline
from foveate.jetson.planner.model_sizes import model
from foveate.jetson.planner.roofline import Efficiency

FOLDER = Path(__file__).parents[2] / "jetson" / "data"
_NEW_TOKENS = 32  # rows of the answer in the cache when decode speed was measured; it hardly matters

Row = dict[str, Any]


def vision(row: Row) -> tuple[float, int, float] | None:
    if "vision_ms" not in row:
        return None
    subject = model(row["model"], visual_tokens=row["visual"])
    return *roofline.vision_work(subject, device(row["device"])), row["vision_ms"] / 1e3


def prefill(row: Row) -> tuple[float, int, float] | None:
    if "prefill_ms" not in row:
        return None
    subject = model(row["model"])
    schedule = ((subject.decoder.num_layers, 0),)
    work = roofline.prefill_work(subject, device(row["device"]), schedule, row["prompt"])
    return *work, row["prefill_ms"] / 1e3


def decode(row: Row) -> tuple[float, int, float] | None:
    if "tokens_per_s" not in row:
        return None
    subject = model(row["model"])
    schedule = ((subject.decoder.num_layers, 0),)
    work = roofline.decode_work(subject, device(row["device"]), schedule, row["prompt"] + _NEW_TOKENS)
    return *work, 1 / row["tokens_per_s"]


STAGES: dict[str, Callable[[Row], tuple[float, int, float] | None]] = {
    "vision": vision,
    "prefill": prefill,
    "decode": decode,
}


def fit(samples: list[tuple[float, int, float]]) -> Efficiency:
    """Fit by least squares of relative errors to (seconds at the peak, layers, seconds measured).

    Neither number is below 0.
    """
    ideal, layers, seconds = np.array(samples).T
    table = np.stack([ideal / seconds, layers / seconds], 1)
    (slope, per_layer), *_ = np.linalg.lstsq(table, np.ones(len(samples)), rcond=None)
    if per_layer < 0:
        slope, per_layer = table[:, 0].sum() / (table[:, 0] ** 2).sum(), 0.0
    return Efficiency(round(float(1 / slope), 4), round(float(per_layer), 7))


def error(efficiency: Efficiency, sample: tuple[float, int, float]) -> float:
    """Return the error of the estimate as a share of the measured time."""
    return efficiency.seconds(*sample[:2]) / sample[2] - 1


def left_out(rows: list[Row], stage: str, key: Callable[[Row], Any]) -> Iterator[tuple[Row, float]]:
    """Yield every row with its error after a fit to the rows with other values of ``key``."""
    known = [(row, sample) for row in rows if (sample := STAGES[stage](row))]
    for row, sample in known:
        rest = [other for each, other in known if key(each) != key(row)]
        yield row, error(fit(rest), sample)


def published() -> dict[str, Any]:
    return json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))


def fits() -> dict[str, Efficiency]:
    rows = published()["fit"]
    return {stage: fit([s for row in rows if (s := take(row))]) for stage, take in STAGES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="Write jetson/data/efficiency.json (default: only print)."
    )
    args = parser.parse_args()
    data, found = published(), fits()
    rows = data["fit"]
    for stage, efficiency in found.items():
        print(
            f"\n{stage}: {efficiency.share:.1%} of the peak and {efficiency.per_layer * 1e6:.0f} us per layer"
        )
        for title, key in (("row left out", id), ("device left out", lambda row: row["device"])):
            errors = list(left_out(rows, stage, key))
            print(
                f"  {title}: mean {np.mean([abs(e) for _, e in errors]):.1%}, "
                f"most {max(abs(e) for _, e in errors):.1%}"
            )
            for row, e in errors:
                print(f"    {row['device']:<20}{row['model']:<15}{e:+7.1%}")
        print("  never fitted")
        for row in data["held_out"]:
            if sample := STAGES[stage](row):
                print(
                    f"    {row['device']:<20}{row['model']:<15}{error(efficiency, sample):+7.1%}  "
                    f"{row['source']}, {row['prompt']} rows"
                )
    if args.write:
        values = {stage: vars(each) for stage, each in found.items()}
        (FOLDER / "efficiency.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
