"""``foveate build``: a checkpoint and a method go in, a bundle comes out, compiled for this machine.

Names and options are checked before torch is imported, so that help and typing errors are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.calib import samples, schemes
from foveate.engines.errors import UserError
from foveate.export import lowering, methods
from foveate.export.bundling import precision as precisions
from foveate.export.bundling.precision import Precision, choices
from foveate.export.bundling.publish import compiled
from foveate.export.bundling.staging import reserved
from foveate.export.checkpoints import model_names
from foveate.runtime.bundle.compiled import usable
from foveate.runtime.cli import Parser

if TYPE_CHECKING:
    from foveate.export.pruning.combined import Pair
    from foveate.export.pruning.method import Method
    from foveate.export.spec import Parts

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
        "--dialects", help=f"comma-separated, of {', '.join(lowering.names())}; default: all that can be had"
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
    methods.require(args.method)
    set_options = _options(args.set)
    precision = Precision(args.precision, args.head_precision, args.vision_precision, args.prefill_precision)
    asked = list(dict.fromkeys(args.dialects.split(","))) if args.dialects else None
    lowering.require(asked or [])
    model_names.require(args.model)
    if args.calibrate is not None and not args.statistics and not precision.schemes:
        raise UserError(
            f"there is nothing to calibrate | nothing is quantized with --precision {args.precision} | leave out --calibrate, "
            "or say with --statistics where to keep what it finds for other builds",
            code=2,
        )
    out = args.out or _default_out(args)
    dialects = _build(args, set_options, precision, asked, out)
    if not args.no_compile:
        from foveate.runtime.compiling.compile import compile_bundle

        for target in usable(dialects):
            compile_bundle(out, target, progress=lambda line: print(line, file=sys.stderr))
    _say_what_is_next(out)
    return 0


def _build(
    args: argparse.Namespace,
    set_options: dict[str, str],
    precision: Precision,
    asked: list[str] | None,
    out: Path,
) -> list[str]:
    """Build the bundle of arguments whose names are right; its dialects. The place is reserved before
    anything is downloaded."""
    from foveate.export import models
    from foveate.export.bundling import build_bundle
    from foveate.export.calibration import calibrate
    from foveate.export.settings import generation

    method = methods.load(args.method, set_options)
    calibration = None
    if args.calibrate is not None or args.statistics:
        calibration = calibrate.Calibration(args.calibrate, args.calibration_count, args.statistics)
    calibrated = calibration is not None
    precisions.dialects(precision, asked, calibrated)  # refused before anything is downloaded
    with reserved(out) as place:
        if args.no_compile and (engines := compiled(place.folder)):
            keys = ", ".join(plan.key for plan in engines)
            print(
                f"{out} has compiled engines: {keys}; those that the new files do not fit will go",
                file=sys.stderr,
            )
        parts = models.load(
            args.model,
            load_format=args.load_format,
            clip=args.clip,
            max_pixels=args.max_pixels,
            adapter=args.adapter,
        )
        for note in generation.notes(parts.prompt["stop_ids"], parts.generation):
            print(note, file=sys.stderr)
        dialects, left_out = precisions.dialects(
            precision, asked, calibrated, build_bundle.most_sorted(parts, method)
        )
        for name, reason in left_out.items():
            print(f"the dialect {name} is left out: {reason}", file=sys.stderr)
        return build_bundle.write_bundle(
            place,
            parts,
            method,
            precision=precision,
            dialects=dialects,
            pruner=args.pruner,
            calibration=calibration,
            llm_parts=args.llm_parts,
        )


def build(parts: Parts, method: Method | Pair, out: Path, **options: Any) -> None:
    """``build_bundle.build``, imported when it is called."""
    from foveate.export.bundling import build_bundle

    build_bundle.build(parts, method, out, **options)


def _default_out(args: argparse.Namespace) -> Path:
    """``bundles/MODEL.METHOD.PRECISION``; a directory counts by its real name, whatever path leads to it."""
    model = Path(args.model).expanduser()
    name = Path(os.path.abspath(model)).name if model.is_dir() else model.name
    return Path("bundles") / f"{name or 'model'}.{args.method}.{args.precision}"


def _options(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--set {pair} is not an option of the method | expected KEY=VALUE", code=2)
    return dict(pair.split("=", 1) for pair in pairs)


def _say_what_is_next(out: Path) -> None:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB", file=sys.stderr)
    print(f'next: foveate run {out} "What is in the picture?" --image PICTURE', file=sys.stderr)


if __name__ == "__main__":
    from foveate.runtime.cli import main

    sys.exit(main(["build", *sys.argv[1:]]))
