"""Run a benchmark on a bundle and score the answers as its authors do.

    python scripts/accuracy.py pope --data POPE --bundle bundles/llava-1.5-7b.sppruner.int4 --keep 128 64

Answers are stored at once, so that a run that is stopped continues where it was. Images are first padded to
squares with the mean colour, as in LLaVA-1.5's evaluation. With ``--as-is`` they go unchanged to the bundle's
own preprocessing, which may crop. Prints the scores; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from evaluation.benchmarks import NAMES, benchmark
from evaluation.benchmarks.base import VICUNA, Sample, padded
from evaluation.store import Log, version
from foveate.engines.errors import UserError
from foveate.runtime.images.image_file import load_image
from foveate.runtime.pipeline import Pipeline

__all__ = ["main"]

SCREEN = Console(stderr=True)


def main(argv: Sequence[str]) -> int:
    try:
        args = _parser().parse_args(argv)
        module = benchmark(args.benchmark)
        samples = _first(module.load(args.data), args.limit)
        results = [_at(args, module, samples, keep) for keep in args.keep or [None]]
    except UserError as error:
        SCREEN.print(f"error: {error}", markup=False, highlight=False)
        return error.code
    print(
        json.dumps(
            {
                "benchmark": args.benchmark,
                "bundle": args.bundle.name,
                "asked": len(samples),
                "results": results,
            }
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accuracy.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "benchmark",
        help=f"Benchmark: {', '.join(NAMES)}. docs/benchmarks.md describes their data.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="Folder with the benchmark's files, or one of them (required).",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="Folder of a compiled bundle (required).")
    parser.add_argument(
        "--keep", nargs="+", help="Budgets to compare, as in foveate run (default: the bundle's)."
    )
    parser.add_argument("--limit", type=int, help="Number of samples, from the first on (default: all).")
    parser.add_argument(
        "--engine", help="Key of a compiled engine, or its beginning (default: the best one)."
    )
    parser.add_argument("--threads", type=int, help="Number of threads on the CPU (default: all cores).")
    parser.add_argument(
        "--system", help='System turn; "vicuna" is that of LLaVA-1.5\'s evaluation (default: none).'
    )
    parser.add_argument("--as-is", action="store_true", help="Do not pad images to squares (default: pad).")
    parser.add_argument(
        "--submit", type=Path, help="Write the file for the benchmark's server (default: do not)."
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("bundles/benchmarks"),
        help="Folder for the answers (default: bundles/benchmarks).",
    )
    return parser


def _first(samples: Iterator[Sample], limit: int | None) -> list[Sample]:
    found = [sample for _, sample in zip(range(limit), samples, strict=False)] if limit else list(samples)
    if not found:
        raise UserError("there are no questions | the files are empty | give another --data", code=2)
    return found


def _at(
    args: argparse.Namespace, module: ModuleType, samples: list[Sample], keep: str | None
) -> dict[str, Any]:
    records = _answers(args, module, samples, keep)
    for sample, record in zip(samples, records, strict=True):
        sample.meta["seen"] = record["seen"]
    texts = [record["said"] for record in records]
    if args.submit:
        if not hasattr(module, "submit"):
            raise UserError(
                f"{args.benchmark} has no server to submit to | got --submit | leave it out", code=2
            )
        module.submit(
            samples, texts, args.submit.with_stem(f"{args.submit.stem}{f'@{keep}' if keep else ''}")
        )
    scores = module.score(samples, texts)
    shown = [record["kept"] for record in records if record["kept"] is not None]
    kept = sum(shown) / len(shown) if shown else None
    SCREEN.print(
        f"{args.benchmark} at {keep or 'the default'}: {json.dumps(scores)}", markup=False, highlight=False
    )
    return {
        "keep": keep,
        "kept": kept,
        "prefill_seconds": sum(r["prefill"] for r in records) / len(records),
        **scores,
    }


def _answers(
    args: argparse.Namespace, module: ModuleType, samples: list[Sample], keep: str | None
) -> list[dict[str, Any]]:
    """Return a record per sample. Stored answers of this bundle are not asked for again."""
    settings = json.dumps([keep, args.system, args.as_is, module.NEW_TOKENS])
    name = f"{args.bundle.name}.{version(args.bundle)}.{_digest(settings.encode())}.jsonl"
    log = Log(args.work / args.benchmark / name, ("id", "digest"))
    pipe, last = None, (None, None, None)
    records = []
    for sample in track(
        samples, f"{args.benchmark} at {keep or 'the default'}", console=SCREEN, transient=True
    ):
        key = sample.id, _digest(sample.prompt.encode(), sample.image)
        if log.get(*key) is None:
            pipe = pipe or Pipeline.load(args.bundle, args.engine, threads=args.threads)
            if sample.image not in (None, last[0]):  # questions about one image are consecutive
                last = (sample.image, *_seen(pipe, sample.image, args.as_is))
            image, seen = (None, None) if sample.image is None else last[1:]
            chat = pipe.chat(VICUNA if args.system == "vicuna" else args.system)
            said = chat.ask(sample.prompt, image, keep=keep, max_new_tokens=module.NEW_TOKENS)
            kept = len(said.kept[0]) if said.kept else None
            record = {"id": key[0], "digest": key[1], "said": said.text.strip(), "seen": seen, "kept": kept}
            log.add([{**record, "prefill": said.timings.prune + said.timings.prefill}])
        records.append(log.get(*key))
    return records


def _seen(pipe: Pipeline, source: Path | bytes, as_is: bool) -> tuple[Any, list[float]]:
    """Return the encoded image, and the box that the model saw: left, top, right, bottom in pixels."""
    image = load_image(Image.open(BytesIO(source)) if isinstance(source, bytes) else source)
    if as_is:
        seen = pipe.see(image)
        return seen, list(seen.view.box)
    square, left, top = padded(image, pipe.manifest.image.get("mean", (0.5, 0.5, 0.5)))
    seen = pipe.see(square)
    box = seen.view.box
    return seen, [box[0] - left, box[1] - top, box[2] - left, box[3] - top]


def _digest(*parts: bytes | Path | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
    return digest.hexdigest()[:12]
