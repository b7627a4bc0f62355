"""Time a bundle's language model on the CPU next to llama.cpp and OpenVINO at the same sizes.

The rivals get random weights of the first bundle's sizes: a GGUF file in Q4_0, and a stateful OpenVINO model
whose weights nncf compressed. They are written to ``--work`` once. Every contender is a process of its own.
They are measured in turn, round by round, so that a disturbance affects all of them. Prefill is of ``tokens``
rows into an empty cache. Decode is the median of single steps after them. Prints medians over the rounds with
the fastest and slowest; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foveate.runtime.bundle.compiled import choose, load_engine
from foveate.runtime.bundle.loading import load
from foveate.runtime.llm.kv_cache import KVCache
from foveate.runtime.measuring.bench import environment, resident_bytes
from speed.arguments import add_rounds
from speed.rival_models import gguf_file, openvino_file
from speed.tables import spread

KINDS = ("llama.cpp-q4_0", "openvino-int4", "openvino-int8")
_STEPS = 16


class Ours:
    """The graph ``llm`` of a bundle in its compiled engine, without the other stages."""

    def __init__(self, path: Path, threads: int, sizes: dict[str, int], work: Path) -> None:
        bundle = load(path)
        self.engine = load_engine(bundle, choose(bundle), "llm", {"threads": threads})
        self.hidden = bundle.manifest.decoder.hidden_size
        self.random = np.random.default_rng(0)

    def prefill(self, tokens: int) -> None:
        if not hasattr(self, "cache") or self.cache.capacity != tokens + _STEPS:
            self.cache = KVCache(self.engine)
            self.cache.reserve(tokens + _STEPS)
        self._run(tokens, 0)
        self.length = tokens

    def step(self) -> None:
        self._run(1, self.length)
        self.length += 1

    def _run(self, rows: int, start: int) -> None:
        self.engine.run(
            {
                "inputs_embeds": self.random.standard_normal((1, rows, self.hidden), np.float32),
                "position_ids": np.arange(start, start + rows)[None],
                "write_index": np.array([start]),
                "last": np.array([rows - 1]),
                **self.cache.feeds(),
            }
        )


class LlamaCpp:
    """llama.cpp with its default batch sizes. Flash attention was tried and makes no difference here."""

    def __init__(self, kind: str, threads: int, sizes: dict[str, int], work: Path) -> None:
        from llama_cpp import Llama

        context = max(sizes["tokens"]) + _STEPS
        self.model = Llama(
            str(gguf_file(sizes, work)),
            n_ctx=context,
            n_batch=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.random = np.random.default_rng(0)

    def prefill(self, tokens: int) -> None:
        self.model.reset()
        self.model.eval(self.random.integers(300, 31000, tokens).tolist())

    def step(self) -> None:
        self.model.eval([300])


class OpenVino:
    def __init__(self, kind: str, threads: int, sizes: dict[str, int], work: Path) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        path = openvino_file(sizes, kind.rpartition("-")[2], work)
        self.request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        self.hidden, self.random = sizes["hidden_size"], np.random.default_rng(0)

    def prefill(self, tokens: int) -> None:
        self.request.reset_state()
        self.length = 0
        self._run(tokens)

    def step(self) -> None:
        self._run(1)

    def _run(self, rows: int) -> None:
        embeds = self.random.standard_normal((1, rows, self.hidden), np.float32)
        positions = np.arange(self.length, self.length + rows)[None]
        beams = np.zeros(1, np.int32)
        self.request.infer({"inputs_embeds": embeds, "position_ids": positions, "beam_idx": beams})
        self.length += rows


def contender(name: str) -> type:
    if name not in KINDS:
        return Ours
    return LlamaCpp if name.startswith("llama") else OpenVino


def serve(name: str, threads: int, sizes: dict[str, Any], work: Path) -> None:
    """Run a contender's process: answer each number of tokens on stdin with a line of JSON with its times."""
    runner = contender(name)(Path(name) if name not in KINDS else name, threads, sizes, work)
    print("{}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        runner.prefill(int(line))
        prefill = time.perf_counter() - start
        steps = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            runner.step()
            steps.append(time.perf_counter() - start)
        found = {"prefill": prefill, "decode": statistics.median(steps[2:]), "resident": resident_bytes()}
        print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", help="Compiled bundles; the first one gives the sizes.")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[640, 192, 104],
        help="Rows of the prompts (default: 640 192 104).",
    )
    parser.add_argument(
        "--rivals", nargs="*", default=KINDS, choices=KINDS, help="Rivals to measure (default: all)."
    )
    add_rounds(parser)
    args = parser.parse_args()
    sizes = asdict(load(args.bundles[0]).manifest.decoder) | {"tokens": args.tokens}
    args.work.mkdir(parents=True, exist_ok=True)
    if args.serve:
        serve(args.serve, args.threads, sizes, args.work)
        return
    names = [*args.bundles, *args.rivals]
    found = measure(names, args.tokens, args.rounds)
    print_table(found, args.tokens)
    print(json.dumps({"environment": environment(args.threads), "sizes": sizes, "contenders": found}))


def measure(names: Sequence[str], tokens: Sequence[int], rounds: int) -> dict[str, dict[str, Any]]:
    """Return by contender and number of tokens the seconds of every round."""
    servers = {name: start(name) for name in names}
    found: dict[str, dict[str, Any]] = {name: {str(n): [] for n in tokens} for name in names}
    try:
        for number in range(-1, rounds):  # the first round is the warm-up
            for n in tokens:
                for name, server in servers.items():
                    answer = ask(server, n)
                    print(f"round {number} {n} {name} {answer}", file=sys.stderr, flush=True)
                    if number >= 0:
                        found[name][str(n)].append(answer)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    return found


def start(name: str) -> subprocess.Popen:
    command = [sys.executable, *sys.argv, "--serve", name]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    read(server)
    return server


def ask(server: subprocess.Popen, tokens: int) -> dict[str, float]:
    print(tokens, file=server.stdin, flush=True)
    return read(server)


def read(server: subprocess.Popen) -> dict[str, float]:
    """Return the next line that is JSON, since libraries print to stdout too."""
    for line in server.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a contender died: {' '.join(server.args[-2:])}")


def print_table(found: dict[str, dict[str, Any]], tokens: Sequence[int]) -> None:
    print(
        "| contender | "
        + " | ".join(f"prefill {n}, s | decode behind it, ms" for n in tokens)
        + " | resident, GB |"
    )
    print("|---|" + "---|---|" * len(tokens) + "---|")
    for name, rows in found.items():
        cells = []
        for n in tokens:
            for what, scale, digits in (("prefill", 1, 2), ("decode", 1e3, 1)):
                cells.append(spread((row[what] for row in rows[str(n)]), digits, scale))
        most = max(sum(row["resident"].values()) for n in tokens for row in rows[str(n)])
        print(f"| {Path(name).name} | {' | '.join(cells)} | {most / 1e9:.2f} |")
