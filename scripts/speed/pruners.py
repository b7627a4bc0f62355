"""Time every pruner by itself: its graph at LLaVA-1.5-7B's widths in ONNX Runtime.

Weights and inputs are random (attention has heavy tails, as a class token's has). 2,880 tokens are one image
of 48 x 60 patches. In-LLM pruners get 64 more tokens of text, and read their layer's weights in
``--precision``; int8 is as in bundles with ``--prefill-precision int8``. A method's stages are added up, each
with the rows that the stages before it leave. Encoder mergers have no graph of their own and are left out.
Prints medians with the fastest and slowest run; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.export import methods, models
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.write_graphs import write_graphs
from foveate.export.graphs.assemble import assemble
from foveate.export.model_parts import ModelParts
from foveate.export.other_checkpoints import pruner_weights
from foveate.export.spec import ClipVisionSpec
from foveate.runtime.llm.budget import Points
from foveate.runtime.llm.prompt_rows import PromptRows
from foveate.runtime.measuring.bench import environment
from speed.tables import spread

GRIDS = {576: (24, 24), 2880: (48, 60)}
TEXT, WORDS = 64, 12


@dataclass(frozen=True)
class Wide(ClipVisionSpec):
    """A tile of patches of any size."""

    sides: tuple[int, int] = (24, 24)

    @property
    def grid(self) -> tuple[int, int]:
        return self.sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=methods.names(), help="Methods (default: all).")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=list(GRIDS),
        choices=list(GRIDS),
        help="Numbers of visual tokens (default: all).",
    )
    parser.add_argument("--keep", type=int, default=128, help="Budget (default: 128).")
    parser.add_argument(
        "--precision",
        default="int8",
        choices=["fp32", "int8", "int4"],
        help="Precision of in-LLM pruners' weights (default: int8).",
    )
    parser.add_argument("--rounds", type=int, default=9, help="Number of runs (default: 9).")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads (default: 2).")
    parser.add_argument(
        "--work", type=Path, help="Folder for the graphs, to keep them (default: a temporary one)."
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or Path(folder)
        built = {
            (name, tokens): stages
            for name in args.methods
            for tokens in args.tokens
            if (stages := build(name, tokens, args.precision, args.work))
        }
        rows = {
            f"{name} {tokens}": measure(name, tokens, stages, args)
            for (name, tokens), stages in built.items()
        }
    print_table(rows, args.methods, args.tokens)
    about = {"environment": environment(args.threads), "keep": args.keep, "precision": args.precision}
    print(json.dumps(about | {"seconds": rows}))


def build(name: str, tokens: int, precision: str, work: Path) -> list[GraphSpec]:
    """Compile the method's pruners in ``work`` and return their specs. It may have none that fit."""
    try:
        parts = model(tokens)
        graphs = [
            graph for graph in assemble(parts, methods.load(name)) if graph.spec.name.startswith("pruner")
        ]
    except UserError as error:
        print(f"{name} at {tokens} tokens is left out: {error}", file=sys.stderr)
        return []
    specs = [graph.spec.typed("float32") for graph in graphs]
    root = work / f"{name}-{tokens}-{precision}"
    if graphs and not root.exists():
        root.mkdir(parents=True)
        parts = pruner_weights.joined(parts, methods.load(name), None)
        write_graphs(root, parts, graphs, Precision(precision), ["ort"], lambda what, done, total: None)
        for spec in specs:
            OnnxRuntime().compile_graph(root / f"{spec.name}.ort.onnx", root / "engine", spec, {})
    return specs


def model(tokens: int) -> ModelParts:
    parts = models.load("llava-1.5-7b", load_format="dummy")
    vision = parts.spec.vision
    wide = Wide(
        **{field.name: getattr(vision, field.name) for field in fields(ClipVisionSpec)}, sides=GRIDS[tokens]
    )
    return replace(parts, spec=replace(parts.spec, vision=wide))


def measure(name: str, tokens: int, stages: Sequence[GraphSpec], args: argparse.Namespace) -> list[float]:
    """Return the seconds of a run through all stages: [median, fastest, slowest]."""
    folder = args.work / f"{name}-{tokens}-{args.precision}" / "engine"
    loaded = [OnnxRuntime().load(folder, spec, {"threads": args.threads}) for spec in stages]
    points = methods.load(name).budgets(model(tokens).spec)
    given = list(chained(loaded, points, tokens, args.keep))
    seconds = []
    for number in range(-2, args.rounds):
        start = time.perf_counter()
        for engine, values in zip(loaded, given, strict=True):
            engine.run(values)
        if number >= 0:
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds), min(seconds), max(seconds)]


def chained(
    stages: Sequence[Engine], points: Mapping[str, Points], tokens: int, keep: int
) -> Iterator[dict[str, Any]]:
    """Yield the feeds of each stage: the rows of the prompt that the stages before it leave."""
    rows, carried = prompt(tokens, keep), {}
    for engine in stages:
        values = feeds(engine, len(rows), keep, rows.feeds(points.get(engine.spec.name, ())) | carried)
        yield values
        answers = {name: buffer.numpy() for name, buffer in engine.run(values).items()}
        count = answers["count"][0]
        carried = {f"carried.{n[6:]}": v[:, :count] for n, v in answers.items() if n.startswith("carry.")}
        rows = rows.take(answers["kept"][0, :count])


def feeds(engine: Engine, rows: int, keep: int, known: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return feeds with random numbers for inputs that are not ``known``."""
    random = np.random.default_rng(0)
    sizes = {"words": WORDS, "segments": 1, "tokens": rows}

    def values(tensor: TensorSpec) -> np.ndarray:
        if tensor.value is not None:
            return np.array(keep)
        shape = [sizes[d.name] if isinstance(d, Symbol) else d for d in tensor.shape]
        if tensor.name in known:
            return known[tensor.name].reshape(shape)
        found = random.standard_normal(shape, np.float32)
        if "attention" in tensor.name:
            found = np.exp(2.5 * found)
            found /= found.sum(-1, keepdims=True)
        return found

    return {tensor.name: values(tensor) for tensor in engine.spec.inputs}


def prompt(tokens: int, keep: int) -> PromptRows:
    """Return a prompt with an image before the text."""
    rows, columns = GRIDS[tokens]
    seen, text = np.ones(tokens, np.int64), np.ones(TEXT, np.int64)

    def both(image: Any, words: int) -> np.ndarray:
        return np.concatenate([seen * image, text * words])

    place = both(np.arange(tokens), -1)
    return PromptRows(
        both(0, -1), place, place, both(rows, 1), both(columns, 1),
        both(tokens, 0), both(tokens, 0), both(keep, 0),
        np.arange(tokens + TEXT),
    )  # fmt: skip


def print_table(rows: dict[str, list[float]], names: Sequence[str], tokens: Sequence[int]) -> None:
    print("| method | " + " | ".join(f"{n} tokens, ms" for n in tokens) + " |")
    print("|---|" + "---|" * len(tokens))
    for name in names:
        found = [rows.get(f"{name} {n}") for n in tokens]
        if any(found):
            cells = ("-" if times is None else spread(times, 1, 1e3) for times in found)
            print(f"| {name} | {' | '.join(cells)} |")
