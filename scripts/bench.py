"""What a compiled bundle costs on this machine: loading, memory, and every stage at several budgets.

    python scripts/bench.py bundles/llava-1.5-7b.sppruner.int4 --keep 576 128 64

Budgets are measured in turn, several rounds in one process, so that ratios hold on a busy machine too. Medians, with
the fastest round in brackets. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.runtime import Pipeline
from foveate.runtime.prompt import Turn

STAGES = ("preprocess", "vision", "prune", "prefill", "first_token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--keep", type=int, nargs="+", help="budgets; the first is what the others are held against"
    )
    parser.add_argument("--text-tokens", type=int, default=40, help="text tokens of the prompt")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    start = time.perf_counter()
    pipe = Pipeline.load(args.bundle, threads=args.threads)
    load = time.perf_counter() - start
    total = pipe.manifest.num_visual_tokens
    budgets = args.keep or [total, max(1, total * 2 // 9), max(1, total // 9)]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    text = question(pipe, args.text_tokens)
    pipe.generate(picture, text, keep=budgets[-1], max_new_tokens=2)  # warm-up
    timings = {keep: [] for keep in budgets}
    for _ in range(args.rounds):
        for keep in budgets:
            answer = pipe.generate(picture, text, keep=keep, max_new_tokens=args.new_tokens)
            timings[keep].append(answer.timings)
    rows = [row(keep, timings[keep], timings[budgets[0]]) for keep in budgets]
    document = {
        "bundle": args.bundle.name,
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "load_seconds": round(load, 2),
        "resident_gib": round(resident(), 2),
        "text_tokens": text_tokens(pipe, text),
        "rows": rows,
    }
    print(f"loaded in {load:.1f} s; resident {resident():.2f} GiB", file=sys.stderr)
    print(f"| keep | {' | '.join(f'{stage} s' for stage in STAGES)} | tokens/s | prefill x | first token x |")
    print("|---|" + "---|" * (len(STAGES) + 3))
    for r in rows:
        cells = " | ".join(f"{r[stage]:.3f} ({r['fastest'][stage]:.3f})" for stage in STAGES)
        ratios = f"{r['prefill_ratio']:.2f} | {r['first_token_ratio']:.2f}"
        print(f"| {r['keep']} | {cells} | {r['tokens_per_second']:.2f} | {ratios} |")
    print(json.dumps(document))


def question(pipe: Pipeline, tokens: int) -> str:
    """A text with which the prompt has at least so many text tokens, the chat format's included."""
    text = "What"
    while text_tokens(pipe, text) < tokens:
        text += " is" if text_tokens(pipe, text + " is") <= tokens else "?"
    return text


def text_tokens(pipe: Pipeline, text: str) -> int:
    segments = pipe.tokenizer.encode_turns([Turn("user", text, images=1)])
    return sum(len(segment) for segment in segments if isinstance(segment, np.ndarray))


def row(keep: int, mine: list, whole: list) -> dict:
    def median(timings: list, name: str) -> float:
        return statistics.median(getattr(t, name) for t in timings)

    return {
        "keep": keep,
        **{stage: median(mine, stage) for stage in STAGES},
        "fastest": {stage: min(getattr(t, stage) for t in mine) for stage in STAGES},
        "tokens_per_second": median(mine, "tokens_per_second"),
        "prompt_rows": mine[0].prompt_rows,
        "cache_mib": mine[0].cache_bytes_allocated / 2**20,
        "prefill_ratio": median(whole, "prefill") / median(mine, "prefill"),
        "first_token_ratio": median(whole, "first_token") / median(mine, "first_token"),
    }


def resident() -> float:
    """GiB of this process in memory, mapped weights included (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    main()
