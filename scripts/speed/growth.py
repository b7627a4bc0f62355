"""Measure how the cost of a language model grows with the number of rows, in prefill and in decode.

Prefill is into an empty cache; decode steps follow it. Every length is measured in each round, so that a
disturbance affects all of them. Curves are fitted to the medians by least squares of relative errors: a + b n
+ c n^2 for prefill, a + b n for a step. The last lines explain them: b of prefill is the products with
weights, c is attention, and b of a step is reading the cache. The very last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import DecoderSizes
from foveate.runtime.measuring import costs
from foveate.runtime.measuring.bench import environment
from speed.contenders import Ours
from speed.tables import spread

LENGTHS = [64, 128, 256, 512, 1024, 2048, 2880, 4080]
_STEPS = 8
Times = dict[int, list[float]]
"""Seconds of every round, by number of rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="Compiled bundle with its language model in one graph.")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=LENGTHS,
        help=f"Numbers of rows (default: {' '.join(map(str, LENGTHS))}).",
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds (default: 3).")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads (default: 2).")
    parser.add_argument("--plot", type=Path, help="PNG file to draw (default: none).")
    args = parser.parse_args()
    sizes = load(args.bundle).manifest.decoder
    prefill, step = measure(Ours(args.bundle, args.threads, asdict(sizes), Path()), args.lengths, args.rounds)
    fits = {"prefill": fit(prefill, 2), "step": fit(step, 1)}
    print_table(prefill, step)
    print("\n".join(explain(sizes, fits)))
    if args.plot:
        plot(prefill, step, fits, args.plot)
    found = {"prefill": prefill, "step": step, "fits": fits}
    print(json.dumps({"environment": environment(args.threads), "sizes": asdict(sizes), **found}))


def measure(model: Ours, lengths: Sequence[int], rounds: int) -> tuple[Times, Times]:
    prefill: Times = {n: [] for n in lengths}
    step: Times = {n: [] for n in lengths}
    for number in range(-1, rounds):  # the first round is the warm-up
        for n in lengths:
            seconds = timed(lambda n=n: model.prefill(n))
            steps = statistics.median(timed(model.step) for _ in range(_STEPS))
            print(f"round {number} {n} {seconds:.3f} s {steps * 1e3:.1f} ms", file=sys.stderr, flush=True)
            if number >= 0:
                prefill[n].append(seconds)
                step[n].append(steps)
    return prefill, step


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fit(times: Times, degree: int) -> list[float]:
    """Fit a polynomial by least squares of relative errors. Return the coefficients from power 0 on."""
    lengths = np.array(list(times), float)
    seconds = np.array([statistics.median(rounds) for rounds in times.values()])
    powers = np.stack([lengths**power for power in range(degree + 1)], axis=1)
    return np.linalg.lstsq(powers / seconds[:, None], np.ones_like(seconds), rcond=None)[0].tolist()


def explain(sizes: DecoderSizes, fits: Mapping[str, Sequence[float]]) -> list[str]:
    """Return lines that explain the coefficients, next to the FLOPs of ``costs``."""

    def flops(tokens: int) -> int:
        return costs.prefill_flops(sizes, ((sizes.num_layers, tokens),), 0)

    square = (flops(3) - 2 * flops(2) + flops(1)) / 2  # coefficients of a polynomial of degree 2
    line = flops(2) - flops(1) - 3 * square
    cache = costs.cache_bytes(sizes, ((sizes.num_layers, 1),), 0, "float32")
    _, b, c = fits["prefill"]
    start, row = fits["step"]
    return [
        f"prefill: {b * 1e3:.3f} ms per token, {line / b / 1e9:.0f} GFLOP/s in products with weights",
        f"prefill: {c * 1e9:.2f} ns per pair of tokens, {square / c / 1e9:.0f} GFLOP/s in attention",
        f"step: {start * 1e3:.1f} ms, and {row * 1e6:.2f} us per row of cache, {cache / row / 1e9:.1f} GB/s",
    ]


def print_table(prefill: Times, step: Times) -> None:
    print("| tokens | prefill, s | ms per token | a step behind them, ms |\n|---|---|---|---|")
    for n in prefill:
        per_token = statistics.median(prefill[n]) / n * 1e3
        print(f"| {n} | {spread(prefill[n], 3)} | {per_token:.2f} | {spread(step[n], 1, 1e3)} |")


def plot(prefill: Times, step: Times, fits: Mapping[str, Sequence[float]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=150)
    _draw(left, prefill, fits["prefill"], 1, "tokens of the prompt", "prefill, s")
    _draw(right, step, fits["step"], 1e3, "rows in the cache", "decode step, ms")
    figure.tight_layout()
    figure.savefig(file)


def _draw(axes: Any, times: Times, fitted: Sequence[float], scale: float, x: str, y: str) -> None:
    middles = [statistics.median(rounds) * scale for rounds in times.values()]
    line = np.linspace(min(times), max(times), 200)
    axes.plot(line, scale * np.polynomial.polynomial.polyval(line, fitted), color="#0072B2", lw=1)
    axes.plot(list(times), middles, "o", color="#0072B2")
    axes.set(xlabel=x, ylabel=y, xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
