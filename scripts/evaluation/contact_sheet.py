"""Show what every method keeps of one image at one budget, side by side, and what the model then answers.

A patch that is kept to the end has its colours. One that the first pruner drops is dim; one that a later
pruner drops is in between. Bundles are built into ``--work`` once; ``--fresh`` builds them again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.images.overlay import draw_overlay
from foveate.runtime.images.processor import image_processor
from foveate.runtime.measuring import costs
from foveate.runtime.pipeline import Answer, Pipeline

PAPER, INK, FAINT, WRONG = (24, 25, 27), (236, 234, 226), (150, 149, 144), (255, 126, 103)
LEGEND = (
    "Bright: kept. Tinted: merged, with a line to what absorbed it. "
    "Dropped between layers of the model: the later, the brighter."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="scripts/shapes",
        help="Folder or name of the checkpoint (default: scripts/shapes).",
    )
    parser.add_argument("--image", default="docs/scene.png", help="Image to show (default: docs/scene.png).")
    parser.add_argument(
        "--question",
        default="What letter is on the sign?",
        help="Question to ask (default: what letter is on the sign).",
    )
    parser.add_argument(
        "--keep", default="64", help='Visual tokens to keep, or a share such as "11.1%%" (default: 64).'
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=methods.names(),
        metavar="METHOD",
        help="Methods to show (default: all).",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("methods.png"), help="File to write (default: methods.png)."
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("bundles/sheet"),
        help="Folder for the bundles (default: bundles/sheet).",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="Build the bundles again (default: use those in --work)."
    )
    parser.add_argument("--columns", type=int, default=5, help="Number of columns (default: 5).")
    parser.add_argument("--tile", type=int, default=320, help="Width of an image in pixels (default: 320).")
    args = parser.parse_args()
    panels: list[Panel] = []
    for name in sorted(args.methods, key=lambda name: (name != "none", name)):
        try:
            panels.append(panel(args, name))
        except UserError as error:  # a method that does not support this model
            print(f"{name:<12} left out: {error}", file=sys.stderr)
            continue
        print(f"{name:<12} {panels[-1].tokens:<44} {panels[-1].answer}", file=sys.stderr)
    drawn = sheet(panels, args.columns, args.tile, f"“{args.question}”  with {args.keep} visual tokens")
    save(drawn, args.out)
    print(f"{args.out}: {len(panels)} methods, {args.out.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


@dataclass(frozen=True)
class Panel:
    name: str
    tokens: str
    answer: str
    image: Image.Image


def panel(args: argparse.Namespace, name: str) -> Panel:
    """Return the image as the method ``name`` leaves it, with the model's answer."""
    pipe = Pipeline.load(bundle(args, name))
    keep = None if name == "none" else args.keep
    answer = pipe.generate(args.image, args.question, keep=keep, max_new_tokens=16)
    image = faded(args.image, answer, pipe.manifest)
    plan = costs.measured(pipe.manifest, answer.stages[0])
    return Panel(name, tokens(plan), answer.text.strip(), image)


def bundle(args: argparse.Namespace, name: str) -> Path:
    out = args.work / f"{Path(args.model).name}.{name}"
    if args.fresh or not (out / "bundle.json").is_file():
        build(models.load(args.model), methods.load(name), out, precision="fp32", dialects=["ort"])
    compile_bundle(out)
    return out


def tokens(plan: costs.Schedule) -> str:
    if len(plan) == 1:
        return f"{plan[0][1]} tokens"
    return f"{', '.join(str(count) for _, count in plan)} tokens (mean {costs.average_tokens(plan):.0f})"


def faded(image: str, answer: Answer, manifest: Manifest) -> Image.Image:
    """Return the mean of the images that each pruner leaves."""
    left = list(answer.stages[0].values()) or answer.kept
    owners = [answer.owners[0], *[None] * len(left)]
    drawn = [
        np.asarray(
            draw_overlay(image, kept, manifest.grid, image_processor(manifest.image), owner), np.float32
        )
        for kept, owner in zip(left, owners, strict=False)
    ]
    return Image.fromarray(np.round(np.mean(drawn, axis=0)).astype(np.uint8))


def sheet(panels: list[Panel], columns: int, width: int, title: str) -> Image.Image:
    """Arrange the panels in reading order, ``width`` pixels each. Answers unlike the first one are marked."""
    columns = min(columns, len(panels))
    large, small, gap = round(width / 15), round(width / 19), round(width / 14)
    image = panels[0].image
    height = round(width * image.height / image.width)
    step, head = height + round(3.6 * large), 4 * large
    rows = -(-len(panels) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) + gap, head + rows * step + 3 * small), PAPER)
    pen = ImageDraw.Draw(canvas)

    def write(x: float, y: float, text: str, size: int, ink: tuple[int, int, int], anchor: str) -> None:
        pen.text((x, y), text, fill=ink, font=ImageFont.load_default(size), anchor=anchor)

    write(gap, head / 2, title, round(1.4 * large), INK, "lm")
    for number, each in enumerate(panels):
        left, top = gap + number % columns * (width + gap), head + number // columns * step
        canvas.paste(each.image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        line = top + height + large
        write(left, line, each.name, large, INK, "lm")
        ink = INK if each.answer == panels[0].answer else WRONG
        write(left + width, line, f"“{each.answer}”", large, ink, "rm")
        write(left, line + 1.25 * large, each.tokens, small, FAINT, "lm")
    write(gap, canvas.height - 2.2 * small, LEGEND, small, FAINT, "lm")
    return canvas


def save(drawn: Image.Image, path: Path) -> None:
    """Save the sheet. A PNG gets a palette: a quarter of the bytes, and no channel is off by over a tenth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        drawn = drawn.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    drawn.save(path, optimize=True)
