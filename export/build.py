"""``foveate build``: makes a bundle of a checkpoint and a pruning method, and compiles it for this machine.

Names and options are checked before torch is imported: ``--help`` and mistyped names are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.calib import samples, schemes
from foveate.engines.errors import UserError
from foveate.engines.targets import usable
from foveate.export import lowering, methods
from foveate.export.bundling import precision as precisions
from foveate.export.bundling.precision import Precision, choices
from foveate.export.bundling.publish import compiled
from foveate.export.bundling.staging import reserved
from foveate.export.checkpoints import model_names
from foveate.runtime.cli import Parser

if TYPE_CHECKING:
    from foveate.export.model_parts import ModelParts
    from foveate.export.pruning.method import Method

__all__ = ["PURPOSE", "add_options", "build", "main", "run"]


PURPOSE = "Make a bundle of a checkpoint and a pruning method, and compile it for this machine."


def _parser() -> Parser:
    parser = Parser("foveate build", description=PURPOSE)
    add_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="The directory of the bundle (default: bundles/MODEL.METHOD.PRECISION).",
    )
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every option but ``--out``. ``run`` reads their values, and ``out``: a path or None."""
    parser.add_argument(
        "--model",
        required=True,
        help="The model: a name such as llava-1.5-7b, a hub id (org/name), or a checkpoint's "
        "directory (required).",
    )
    parser.add_argument(
        "--method",
        required=True,
        help=f"The pruning method, one of {', '.join(methods.names())} (required). "
        "Join a pre-LLM and an in-LLM pruner with +, as in vscan+pyramiddrop.",
    )
    _add_precisions(parser)
    _add_calibration(parser)
    parser.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="Where the weights come from: auto reads the checkpoint's, dummy makes random ones of the "
        "same size (default: auto).",
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR_OR_HUB_ID",
        help="A LoRA adapter to merge into the model (default: the one in the model's directory, if there "
        "is one).",
    )
    parser.add_argument(
        "--clip",
        metavar="DIR_OR_HUB_ID",
        help="The CLIP checkpoint that the vision tower comes from, for methods that compare text and image "
        "(default: clip in the model's directory, or OpenAI's CLIP where the tower is theirs).",
    )
    parser.add_argument(
        "--pruner",
        metavar="FILE_OR_HUB_ID",
        help="Weights of a trained pruner: a .safetensors or .pth file, or a hub id (default: "
        "METHOD.safetensors in the model's directory, or the published weights where they fit).",
    )
    parser.add_argument(
        "--dialects",
        help=f"Forms of the graphs to write, separated by commas: {', '.join(lowering.names())} "
        "(default: all that support the model, the method and the precision).",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="Largest number of pixels of an image, for models that take images of any size; larger images "
        "are scaled down (default: the most that every dialect supports).",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Set an option of the method; may be given several times (default: the method's own values).",
    )
    parser.add_argument(
        "--llm-parts",
        type=int,
        default=1,
        metavar="N",
        help="Cut the language model into N graphs that are compiled one after another, for devices with "
        "little memory (default: 1).",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="Write the bundle and do not compile it (default: compile it for this machine).",
    )


def _add_precisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=choices(),
        default="int4",
        help="Precision of the decoder layers (default: int4).",
    )
    parser.add_argument(
        "--head-precision",
        choices=schemes.names(),
        help="Precision of the language model's head (default: not quantized).",
    )
    parser.add_argument(
        "--vision-precision",
        choices=schemes.names(),
        help="Precision of the vision encoder's layers (default: not quantized).",
    )
    parser.add_argument(
        "--prefill-precision",
        choices=("int8",),
        help="Precision of a second copy of the decoder layers, used for the prompt alone in the dialect "
        "ort. int8 is faster than int4 and takes twice its size (default: no second copy).",
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        metavar="SAMPLES",
        help="Calibrate with these samples: a folder of images, a .jsonl file, or the built-in "
        f"{samples.SCENES}. int4 then uses AWQ, int8 uses SmoothQuant and recorded ranges "
        "(default: no calibration).",
    )
    parser.add_argument(
        "--calibration-count",
        type=int,
        default=samples.COUNT,
        metavar="N",
        help=f"Number of calibration samples (default: {samples.COUNT}).",
    )
    parser.add_argument(
        "--statistics",
        type=Path,
        metavar="FILE",
        help="The file of calibration statistics. Without --calibrate it is read in place of calibrating; "
        "with --calibrate the statistics are written there (default: a file beside the bundle).",
    )


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    return run(_parser().parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Build what the options ask for and return the exit status. Raises UserError."""
    methods.require(args.method)
    set_options = _options(args.set)
    precision = Precision(args.precision, args.head_precision, args.vision_precision, args.prefill_precision)
    asked = list(dict.fromkeys(args.dialects.split(","))) if args.dialects else None
    lowering.require(asked or [])
    model_names.require(args.model)
    if args.calibrate is not None and not args.statistics and not precision.schemes:
        raise UserError(
            f"there is nothing to calibrate | --precision {args.precision} quantizes nothing "
            "| leave out --calibrate, or name a file with --statistics that keeps the statistics for other "
            "builds",
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
    """Build the bundle and return its dialects. The names in ``args`` have been checked.

    The bundle's place is reserved before anything is downloaded.
    """
    from foveate.export import build_bundle, models
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
            keys = ", ".join(engine.key for engine in engines)
            print(
                f"{out} has compiled engines: {keys}; those that do not fit the new files will be removed",
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
        sorts = build_bundle.most_sorted(parts, method)
        _, left_out = precisions.dialects(precision, asked, calibrated, sorts)
        for name, reason in left_out.items():
            print(f"the dialect {name} is left out: {reason}", file=sys.stderr)
        return build_bundle.write_bundle(
            place,
            parts,
            method,
            precision=precision,
            dialects=asked,
            pruner=args.pruner,
            calibration=calibration,
            llm_parts=args.llm_parts,
        )


def build(parts: ModelParts, method: Method, out: Path, **options: Any) -> None:
    """Call ``build_bundle.build``, which is imported only then."""
    from foveate.export import build_bundle

    build_bundle.build(parts, method, out, **options)


def _default_out(args: argparse.Namespace) -> Path:
    """Return ``bundles/MODEL.METHOD.PRECISION``; MODEL is the last part of a directory's absolute path."""
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
    print(f'next: foveate run {out} "What is in the image?" --image FILE', file=sys.stderr)


if __name__ == "__main__":
    from foveate.runtime.cli import main

    sys.exit(main(["build", *sys.argv[1:]]))
