"""Features for training OC-VTP's pruner: the output of a vision encoder's layer for many images, on disk."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.calib.scenes.questions import HELD_OUT, make_scene
from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.module_weights import fill
from foveate.export.methods.ocvtp import vision_layer
from foveate.export.model_parts import ModelParts
from foveate.export.pruning.taps import tap
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import single
from foveate.runtime.images.windows import WindowsProcessor

FIRST_SCENE = 300_000_000
"""Seed of the first scene.

scripts/train_shapes.py uses seeds below 200,000,000, and accuracy is measured from HELD_OUT on."""

SIDE = 24
"""Tokens per side of an image, for encoders of any size.

The trained network also accepts other sizes, since it has no position embedding.
"""

NOTED = 200  # images after which progress is noted for a run that is killed
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def collect(
    model: str,
    folder: Path | None,
    count: int,
    layer: int | None,
    work: Path,
    *,
    deadline: float,
    side: int | None = None,
) -> tuple[np.ndarray | None, tuple[int, int]]:
    """Return the features [P,N,D] float16 of P images (None if time ran out), and the grid of the N tokens.

    P is at most `count`; `side` is that of `token_grid`. Features are stored in `work`, so that a run that is
    stopped continues where it was. Raises UserError.
    """
    parts = models.load(model)
    layer = vision_layer(parts.spec, layer)
    read, names = _images(folder, count)
    grid = token_grid(parts, side)
    which = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else f"scenes from {FIRST_SCENE}"
    described = {"model": model, "layer": layer, "images": which, "count": len(names) or count}
    if _any_size(parts) is not None:
        described["grid"] = list(grid)
    shape = (len(names) or count, math.prod(grid), parts.spec.vision.hidden_size)
    file, log = work / "features.npy", work / "features.json"
    done = _done(file, log, described)
    if done is None:
        np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
        done = 0
    table = np.lib.format.open_memmap(file, "r+")

    def note(done: int) -> None:
        table.flush()
        log.write_text(json.dumps(described | {"done": done}))

    if done < len(table):
        done = _fill(table, done, Encoder(parts, layer, grid), read, deadline, note)
    return (table if done == len(table) else None), grid


def _done(file: Path, log: Path, described: dict[str, Any]) -> int | None:
    """Return the number of images in the file, or None if there is no file.

    Raises UserError if it holds features of something else.
    """
    if not (file.is_file() and log.is_file()):
        return None
    known = json.loads(log.read_text())
    done = known.pop("done")
    if known != described:
        raise UserError(
            f"{file} holds features of other images or of another layer "
            f"| got {known['model']}, layer {known['layer']} "
            "| give another --work, or delete it"
        )
    return done


def _images(folder: Path | None, count: int) -> tuple[Callable[[int], Image.Image], list[str]]:
    """Return the function that opens image number i, and the images' names; scenes have none."""
    if folder is None:
        assert FIRST_SCENE + count < HELD_OUT
        return (lambda number: make_scene(FIRST_SCENE + number).image), []
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)[:count]
    if not found:
        raise UserError(
            f"no images in {folder} | expected {', '.join(_IMAGES)} | give another --images", code=2
        )
    return (lambda number: load_image(found[number])), [str(path.relative_to(folder)) for path in found]


def token_grid(parts: ModelParts, side: int | None = None) -> tuple[int, int]:
    """Return the rows and columns of an image's tokens.

    They are the vision encoder's, or `side` of each (default SIDE) if it accepts images of any size.
    Raises UserError (code 2) for a `side` that does not fit.
    """
    images = _any_size(parts)
    if images is None:
        if side is None:
            return parts.spec.vision.grid
        raise UserError(
            f"images of {parts.source['model']} have a fixed size | got --side {side} | leave it out",
            code=2,
        )
    side = side or SIDE
    least, most = (math.sqrt(pixels) / images.cell for pixels in (images.min_pixels, images.max_pixels))
    if not least <= side <= most:
        expected = f"{math.ceil(least)} to {int(most)}"
        raise UserError(f"wrong side | got {side} tokens, expected {expected} | give another --side", code=2)
    return side, side


def _any_size(parts: ModelParts) -> WindowsProcessor | None:
    """Return the image processor if the vision encoder accepts images of any size, else None."""
    images = image_processor(parts.image)
    return images if isinstance(images, WindowsProcessor) else None


class Encoder:
    """Compute the output of a layer of the model's vision encoder for an image.

    As for the published features, the image is squashed, not cropped.
    """

    def __init__(self, parts: ModelParts, layer: int, grid: tuple[int, int]) -> None:
        self.tap, self.grid = tap(parts.spec, "hidden", layer), grid
        self.images, self.any_size = image_processor(parts.image), _any_size(parts)
        self.side = grid[0] * self.any_size.cell if self.any_size else parts.spec.vision.image_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tower = fill(parts.vision((self.tap,)), parts.weights, "vision_encoder.")
        self.tower = tower.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the features [N,D] float32 in raster order."""
        square = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels, plan = self.images.preprocess(load_image(square)), single(self.grid)
        if self.any_size:
            plan = self.any_size.token_layout(square.size)
        else:
            pixels = pixels[:1]  # if there are several tiles, the first shows the whole image
        inputs = (torch.from_numpy(each).to(self.device) for each in (pixels, *plan.feeds.values()))
        return self.tower(*inputs)[self.tap][0].cpu().numpy()[plan.order]


def encode(model: str, images: Iterable[Image.Image], layer: int | None = None) -> torch.Tensor:
    """Return the features [P,N,D] float32 of a few images at the layer that the pruner reads."""
    parts = models.load(model)
    encoder = Encoder(parts, vision_layer(parts.spec, layer), token_grid(parts))
    return torch.from_numpy(np.stack([encoder(image) for image in images]))


def _fill(
    table: np.ndarray,
    done: int,
    encoder: Encoder,
    read: Callable[[int], Image.Image],
    deadline: float,
    note: Callable[[int], None],
) -> int:
    """Write the rows from `done` on and return their number.

    `note` gets it every `NOTED` rows and at the end.
    """
    began = time.time()
    while done < len(table) and time.time() < deadline:
        table[done] = encoder(read(done))
        done += 1
        if done % NOTED == 0 or done == len(table):
            note(done)
            print(f"features {done}/{len(table)}  {time.time() - began:.0f}s", flush=True)
    note(done)
    return done
