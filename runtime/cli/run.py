"""``foveate run``: answer one question about images and videos. The text is printed as it is generated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.cli import Parser, options
from foveate.runtime.cli.typed_prompt import read_prompt
from foveate.runtime.images.image_source import ImageSource, from_command_line
from foveate.runtime.pipeline import Answer, Pipeline

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    parser = Parser(prog="foveate run", description="Answer one question about images and videos.")
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    parser.add_argument(
        "prompt",
        type=str,
        metavar="PROMPT",
        help="The question. Images are shown before it. To place them inside it, write <image> exactly once "
        "for each image and video.",
    )
    options.add_images(parser, "Repeat the option for several images; - reads the standard input")
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="Show the model frames of this video file, after the images. Repeat the option for several "
        "videos (default: no video).",
    )
    options.add_generation(parser)
    options.add_engine(parser)
    parser.add_argument(
        "--timings",
        action="store_true",
        help="Print the tokens kept and the times to stderr (default: they are not printed).",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON document with the answer, the tokens kept and the times "
        "(default: print the text alone).",
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="OUT.png",
        help="Save each image with the kept patches marked: OUT.png, OUT-2.png and so on "
        "(default: nothing is saved).",
    )
    args = parser.parse_args(argv)
    if args.overlay:
        _can_draw(args.overlay, args.image)
    images = from_command_line(args.image, allow_url=args.allow_url)
    pipe = Pipeline.load(args.bundle, args.engine, threads=args.threads, progress=options.say)
    shown = [*images, *map(pipe.video, args.video)]
    prompt = read_prompt(args.prompt, len(shown), pipe.tokenizer, options.say)
    stream = pipe.stream(shown, prompt, **options.generation(args))
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    answer = stream.answer
    if args.json:
        print(json.dumps(to_json(answer, boxes=True)))
    else:
        print(flush=True)  # ends the line before anything goes to stderr
    if args.timings and not args.json:
        options.say("\n".join(options.timing_lines(answer)))
    if args.overlay:
        _overlay(pipe, images, answer, args.overlay)
    return 0


def _can_draw(target: Path, images: list[str]) -> None:
    """Raise UserError before the answer is computed if the overlay could not be saved after it."""
    if not images:
        raise UserError("--overlay shows what is kept of an image | got no --image | add one", code=2)
    if Image.registered_extensions().get(target.suffix.lower()) not in Image.SAVE:
        got = f"the suffix {target.suffix!r}"
        raise UserError(f"cannot save the overlay as {target} | got {got} | use .png or .jpg", code=2)
    if not target.parent.is_dir():
        raise UserError(
            f"cannot save the overlay as {target} | there is no folder {target.parent} | make it first",
            code=2,
        )


def _overlay(pipe: Pipeline, images: list[ImageSource], answer: Answer, target: Path) -> None:
    """Save one file per image: OUT.png, OUT-2.png, ..."""
    from foveate.runtime.images.overlay import draw_stages, save_overlay

    manifest, processor = pipe.manifest, pipe.vision.processor
    for number, image in enumerate(images):
        path = target if number == 0 else target.with_name(f"{target.stem}-{number + 1}{target.suffix}")
        stages, plan = answer.stages[number] or {"pruner": answer.kept[number]}, answer.layouts[number]
        stages = {name: plan.on_finest(kept) for name, kept in stages.items()}
        owner = plan.owned(answer.owners[number])
        drawn = draw_stages(image, stages, plan.finest, processor, owner, manifest.method.cuts, plan.total)
        save_overlay(drawn, path)
        options.say(f"overlay: {path}")


def to_json(answer: Answer, *, boxes: bool = False) -> dict:
    """Return an answer as ``--json`` prints it; ``boxes`` adds the boxes of the kept tokens."""
    images = [view.to_json() for view in answer.views]
    if boxes:
        for image, view, kept in zip(images, answer.views, answer.kept, strict=True):
            found = view.kept_boxes(kept).round(2)
            image["kept_boxes"] = [None if np.isnan(box[0]) else box.tolist() for box in found]
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "images": images,
        "kept": [kept.tolist() for kept in answer.kept],
        "finish": answer.finish,
        "stop": answer.stop,
        "timings": asdict(answer.timings),
    }
