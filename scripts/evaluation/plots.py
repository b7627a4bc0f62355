"""Plots of accuracy against cost.

The four systems are in colour with their 95 % intervals, rivals in grey, baselines dashed, and the unpruned
model is a horizontal line. The colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

__all__ = ["AXES", "plot"]

SYSTEMS = {
    "sppruner": ("#0072B2", "o"),
    "feather": ("#D55E00", "s"),
    "fsr": ("#009E73", "D"),
    "ocvtp": ("#CC79A7", "^"),
}
BASELINES = ("pool", "random", "uniform")
_RIVAL, _BASELINE, _INK = "#C4C4C4", "#6A6A6A", "#333333"
_QUIET = "#8E8E8E"
_GAP = 2.6  # per cent of the axis' height between names
_COLUMN = 1.5  # as far to the right as this factor, names share a column

Row = Mapping[str, Any]
AXES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "tokens": ("visual tokens, mean over the language model's layers", lambda row: row["tokens"]),
    "flops": ("GFLOPs of the prefill", lambda row: row["flops"] / 1e9),
    "time": (
        "time from encoded image to first token, % of the unpruned model's",
        lambda row: 100 * row["prefill"]["share"] if row["prefill"] else None,
    ),
}
"""Name -> title of the axis, and a row's place on it (None: not measured)."""


class _Point(NamedTuple):
    x: float
    y: float
    low: float
    high: float


def plot(rows: Sequence[Row], axis: str, file: Path) -> None:
    """Draw the methods of ``rows`` along ``axis`` into ``file``."""
    title, place = AXES[axis]
    figure, axes = plt.subplots(figsize=(8, 5.2), dpi=150)
    lines = _lines([row for row in rows if row["method"] != "none"], place)
    for name in sorted(lines, key=lambda name: (name in SYSTEMS, name in BASELINES)):
        _draw(axes, name, lines[name])
    for row in rows:
        if row["method"] == "none":
            _across(
                axes, 100 * row["accuracy"], f"unpruned ({row['keep']} tokens): {100 * row['accuracy']:.1f} %"
            )
    _finish(axes, title, [point for points in lines.values() for point in points])
    _label(axes, {name: points[0] for name, points in lines.items()})
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})  # the same bytes from the same numbers
    plt.close(figure)


def _lines(rows: Sequence[Row], place: Callable[[Row], float | None]) -> dict[str, list[_Point]]:
    """Return the points of each method from left to right."""
    lines: dict[str, list[_Point]] = {}
    for row in rows:
        if (x := place(row)) is not None:
            low, high = row["interval"]
            lines.setdefault(row["method"], []).append(
                _Point(x, 100 * row["accuracy"], 100 * low, 100 * high)
            )
    return {name: sorted(points) for name, points in lines.items()}


def _draw(axes: Axes, name: str, points: Sequence[_Point]) -> None:
    xs, ys = [p.x for p in points], [p.y for p in points]
    if name in SYSTEMS:
        colour, marker = SYSTEMS[name]
        spread = [[p.y - p.low for p in points], [p.high - p.y for p in points]]
        axes.errorbar(
            xs, ys, spread, color=colour, marker=marker, markersize=5, linewidth=2, elinewidth=1, capsize=2
        )
    elif name in BASELINES:
        axes.plot(xs, ys, color=_BASELINE, linestyle="--", marker=".", linewidth=1.2)
    else:
        axes.plot(xs, ys, color=_RIVAL, marker=".", linewidth=1)


def _across(axes: Axes, y: float, text: str) -> None:
    axes.axhline(y, color=_INK, linewidth=1, linestyle=":")
    axes.annotate(
        text, (1, y), (-4, 3), ("axes fraction", "data"), "offset points", color=_INK, fontsize=8, ha="right"
    )


def _finish(axes: Axes, title: str, points: Sequence[_Point]) -> None:
    axes.set_xscale("log")
    left, right = min(p.x for p in points), max(p.x for p in points)
    axes.set_xlim(left * (left / right) ** 0.22, right * (right / left) ** 0.06)  # labels stand on the left
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title)
    axes.set_ylabel("right answers, %")
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, ends: Mapping[str, _Point]) -> None:
    """Write the names to the left of the left ends.

    Ends that are close together share a column, in which names are moved apart.
    """
    bottom, top = axes.get_ylim()
    columns: list[list[str]] = []
    for name in sorted(ends, key=lambda name: ends[name].x):
        if not columns or ends[name].x > _COLUMN * ends[columns[-1][0]].x:
            columns.append([])
        columns[-1].append(name)
    for column in columns:
        column.sort(key=lambda name: ends[name].y)
        heights = _apart([ends[name].y for name in column], _GAP / 100 * (top - bottom))
        edge = 0.94 * min(ends[name].x for name in column)
        for name, height in zip(column, heights, strict=True):
            _name(axes, name, ends[name], edge, height)


def _name(axes: Axes, name: str, end: _Point, x: float, y: float) -> None:
    system = name in SYSTEMS
    colour = SYSTEMS[name][0] if system else _BASELINE if name in BASELINES else _QUIET
    text = axes.annotate(
        name,
        (end.x, end.y),
        (x, y),
        ha="right",
        va="center",
        color=colour,
        fontsize=9 if system else 7,
        fontweight="bold" if system else "normal",
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "relpos": (1, 0.5), "shrinkB": 3},
    )
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Push ascending ``heights`` up and down equally until neighbours are ``gap`` apart."""
    moved = list(heights)
    for _ in range(1000):
        for i in range(1, len(moved)):
            if (short := moved[i - 1] + gap - moved[i]) > 0:
                moved[i - 1], moved[i] = moved[i - 1] - short / 2, moved[i] + short / 2
    return moved
