"""``foveate build``: a checkpoint and a method go in, a bundle comes out, compiled for this machine.

The bundle is written beside its final place and renamed at the end: a build that fails or is killed leaves
nothing under the final name, and the next one clears what it left beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foveate.calib import samples, schemes
from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export import calibrate, generation, lower, methods, models, pruner_weights, write
from foveate.export import precision as precisions
from foveate.export.assemble import assemble
from foveate.export.graph import Graph
from foveate.export.methods import base
from foveate.export.methods.base import Method
from foveate.export.pair import Pair
from foveate.export.parts import DecoderSpec, Parts
from foveate.export.precision import Precision, choices
from foveate.export.weights import packed
from foveate.runtime import bundle, licence
from foveate.runtime.cli import Parser
from foveate.runtime.plans import usable

__all__ = ["build", "main"]


def _parser() -> Parser:
    parser = Parser("foveate build", description="A checkpoint and a pruning method become a bundle.")
    parser.add_argument(
        "--model", required=True, help="a name such as llava-1.5-7b, a hub id, or a directory"
    )
    parser.add_argument("--method", required=True, help=f"one of {', '.join(methods.names())}")
    parser.add_argument(
        "--precision", choices=choices(), default="int4", help="of the language model's layers"
    )
    parser.add_argument(
        "--head-precision", choices=schemes.names(), help="of its head; default: the dtype of its graph"
    )
    parser.add_argument(
        "--vision-precision",
        choices=schemes.names(),
        help="of the vision encoder's layers; default: the dtype of its graph",
    )
    parser.add_argument(
        "--prefill-precision",
        choices=("int8",),
        help="a second form of the language model's layers, for prompts, in the dialect ort: faster than int4, twice its size",
    )
    parser.add_argument(
        "--calibrate",
        metavar="SAMPLES",
        help=f"a folder of pictures, a .jsonl file, or {samples.SCENES} (built in): AWQ for int4, SmoothQuant and ranges for int8",
    )
    parser.add_argument(
        "--calibration-count", type=int, default=samples.COUNT, help=f"of samples; default: {samples.COUNT}"
    )
    parser.add_argument(
        "--statistics",
        type=Path,
        metavar="FILE",
        help="of an earlier calibration, in place of --calibrate; with it: where to keep them (default: beside the bundle)",
    )
    parser.add_argument(
        "--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights"
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR_OR_HUB_ID",
        help="a LoRA adapter, merged into the model; one that lies beside the weights is without being named",
    )
    parser.add_argument(
        "--clip", help="CLIP checkpoint of the vision tower, for methods that compare text and picture"
    )
    parser.add_argument(
        "--pruner", help="weights of a trained pruner: a .safetensors or .pth file, or a hub id"
    )
    parser.add_argument(
        "--dialects", help=f"comma-separated, of {', '.join(lower.names())}; default: all that can be had"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="of a picture, where pictures are of any size; larger ones are scaled down (default: as many as every dialect takes)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the method"
    )
    parser.add_argument(
        "--llm-parts",
        type=int,
        default=1,
        metavar="N",
        help="cut the language model into N graphs that are compiled one after another, for devices with little memory",
    )
    parser.add_argument("--out", type=Path, help="bundle directory; default: bundles/MODEL.METHOD.PRECISION")
    parser.add_argument("--no-compile", action="store_true", help="do not compile for this machine")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    method = methods.load(args.method, _options(args.set))
    precision = Precision(args.precision, args.head_precision, args.vision_precision, args.prefill_precision)
    calibration = None
    if args.calibrate is not None and not args.statistics and not precision.schemes:
        raise UserError(
            f"there is nothing to calibrate | nothing is quantized with --precision {args.precision} | leave out --calibrate, "
            "or say with --statistics where to keep what it finds for other builds",
            code=2,
        )
    if args.calibrate is not None or args.statistics:
        calibration = calibrate.Calibration(args.calibrate, args.calibration_count, args.statistics)
    asked = list(dict.fromkeys(args.dialects.split(","))) if args.dialects else None
    precisions.dialects(precision, asked, calibration is not None)  # refused before anything is downloaded
    parts = models.load(
        args.model,
        load_format=args.load_format,
        clip=args.clip,
        max_pixels=args.max_pixels,
        adapter=args.adapter,
    )
    for note in generation.notes(parts.prompt["stop_ids"], parts.generation):
        print(note, file=sys.stderr)
    sorts = _sorts(parts, method)
    dialects, left_out = precisions.dialects(precision, asked, calibration is not None, sorts)
    for name, reason in left_out.items():
        print(f"the dialect {name} is left out: {reason}", file=sys.stderr)
    out = args.out or Path("bundles") / f"{Path(args.model).name}.{args.method}.{args.precision}"
    build(
        parts,
        method,
        out,
        precision=precision,
        dialects=dialects,
        pruner=args.pruner,
        calibration=calibration,
        llm_parts=args.llm_parts,
    )
    if not args.no_compile:
        from foveate.runtime.compile import compile_bundle

        for target in usable(dialects):
            compile_bundle(out, target, progress=lambda line: print(line, file=sys.stderr))
    _say_what_is_next(out)
    return 0


def build(
    parts: Parts,
    method: Method | Pair,
    out: Path,
    *,
    precision: Precision | str = "int4",
    dialects: list[str] | None = None,
    pruner: str | None = None,
    statistics: Statistics | None = None,
    calibration: calibrate.Calibration | None = None,
    llm_parts: int = 1,
) -> None:
    """Write the bundle of ``parts`` pruned by ``method`` to ``out``; an older bundle there is replaced at the end.

    ``pruner`` is where the weights of a trained method are (``pruner_weights.joined``). ``statistics`` are those of ``parts``;
    with ``calibration`` they are collected, and ``parts`` made easier to quantize. ``llm_parts``: into how many graphs the
    language model is cut, of which a compiler then sees one at a time. Raises UserError when ``out`` is
    something else than a bundle, when there are no such weights, and when the disk is full.
    """
    precision = Precision.of(precision)
    calibrated = bool(statistics or calibration)
    dialects, _ = precisions.dialects(precision, dialects, calibrated, _sorts(parts, method))
    with _staging(out) as root, _stages() as stage:
        graphs = assemble(parts, method, llm_parts)
        for note in licence.notes(parts.licence):
            print(note, file=sys.stderr)
        parts = pruner_weights.joined(parts, method, pruner)
        if calibration is not None:
            manifest = _manifest(out.name, parts, method, graphs, precision, {})
            parts, statistics = calibrate.calibrated(
                parts, method, graphs, manifest, calibration, precision, root, out, stage
            )
        written = write.write_graphs(root, parts, graphs, precision, dialects, stage, statistics)
        table = write.write_embeddings(root, parts.weights, precision)
        write.write_files(root, parts, graphs)
        stage("recording golden.npz", 0, 1)
        ranges = write.write_golden(root, parts, method, graphs, written.readings, table)
        write.widen(root, written, ranges, lambda line: print(line, file=sys.stderr))
        stage("hashing", 0, 1)
        manifest = _manifest(out.name, parts, method, graphs, precision, written.index)
        bundle.write_manifest(root, manifest | {"ranges": ranges.to_json()})


def _manifest(
    name: str,
    parts: Parts,
    method: Method | Pair,
    graphs: list[Graph],
    precision: Precision,
    dialects: dict[str, dict[str, object]],
) -> dict[str, object]:
    decoder, total = parts.spec.decoder, parts.spec.vision.picture_tokens
    fields = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "intermediate_size")
    fields += ("vocab_size", "max_positions")
    return {
        "name": name,
        "family": parts.spec.family,
        "source": parts.source,
        "method": {
            "name": method.name,
            "options": methods.describe(method),
            "position_mode": _position_mode(method, decoder),
            "fixed_keep": method.fixed_keep(parts.spec),
            "whole": method.before is not None and method.before.whole,
            "position_mode_inside": _position_mode(method.inside, decoder),
        },
        "precision": precision.describe()
        | ({"weights": "as the checkpoint has them"} if packed(parts.weights) else {}),
        "stages": [graph.spec.name for graph in graphs],
        "graphs": {graph.spec.name: graph.spec.to_json() for graph in graphs},
        "dialects": dialects,
        "num_visual_tokens": total,
        "grid": list(parts.spec.vision.grid),
        "cuts": [cut.layer for cut in method.inside.cuts(decoder)] if method.inside else [],
        "budgets": method.budgets(parts.spec),
        "limits": base.sampled(total, lambda keep: method.leaves(parts.spec, keep, total)),
        "decoder": {field: getattr(decoder, field) for field in fields},
        "vision": parts.spec.vision.sizes,
        "image": parts.image,
        "prompt": parts.prompt,
        "generation": parts.generation,
        "licence": parts.licence,
    }


def _sorts(parts: Parts, method: Method | Pair) -> int:
    """The most tokens that a pruner ranks at once."""
    return 0 if method.name == "none" else parts.spec.vision.picture_tokens


def _position_mode(method: Any, decoder: DecoderSpec) -> str | None:
    """None without a method. With M-RoPE rows keep their positions."""
    if method is None:
        return None
    return method.position_mode if decoder.position_axes == 1 else "keep"


def _options(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--set {pair} is not an option of the method | expected KEY=VALUE", code=2)
    return dict(pair.split("=", 1) for pair in pairs)


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` that becomes ``out`` when the block succeeds and vanishes when it does not."""
    out = out.absolute()
    if out.exists() and not (out / "bundle.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} is in the way | it is no bundle, so it is not replaced | choose another --out"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(out)
        root = out.parent / f".{out.name}.building-{os.getpid()}"
        root.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {out.parent} | {error.strerror} | choose another --out") from error
    try:
        yield root
        _replace(root, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(out.parent).free >> 20
        raise UserError(
            f"the disk is full | {out.parent} has {free} MiB left | free some space or use --out"
        ) from error
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    """What a killed build left behind. A build that still runs keeps its directory."""
    for path in out.parent.glob(f".{out.name}.building-*"):
        owner = path.name.rpartition("-")[2]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            shutil.rmtree(path, ignore_errors=True)


def _replace(root: Path, out: Path) -> None:
    old = root.with_name(f"{root.name}.old")
    if out.exists():
        out.rename(old)
    root.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _stages() -> Iterator[write.Progress]:
    """Progress on stderr: one line per finished stage, a bar for the one that runs."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    task = bar.add_task("", total=1)
    began: dict[str, float] = {}

    def stage(what: str, done: int, total: int) -> None:
        verb = what.split()[0]
        if verb not in began:
            finish()
            began[verb] = time.monotonic()
        bar.update(task, description=what, completed=done, total=total)

    def finish() -> None:
        if began:
            verb, start = list(began.items())[-1]
            console.print(f"{verb:<10} {time.monotonic() - start:6.1f} s", highlight=False)

    with bar:
        yield stage
        finish()


def _say_what_is_next(out: Path) -> None:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB", file=sys.stderr)
    print(f'next: foveate run {out} "What is in the picture?" --image PICTURE', file=sys.stderr)


if __name__ == "__main__":
    from foveate.runtime.cli import main

    sys.exit(main(["build", *sys.argv[1:]]))
