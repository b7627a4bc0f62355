"""The first question that a deployed bundle is asked.

Without an image of the user's, it is about a drawn one: a red circle on grey. Any model can name its colour
in a word. So can the small checkpoint ``shapes``, which knows only such images and questions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image, ImageDraw

__all__ = ["DRAWN", "OWN", "FirstQuestion"]

DRAWN = "What color is the circle?"  # about the drawn image
OWN = "What is in the image?"  # about the user's image
_MOST_TOKENS = 32  # of the answer to one of these two


class FirstQuestion:
    """A question about an image. ``image`` None is the drawn one; ``prompt`` None is chosen for the image."""

    def __init__(self, image: Path | None, prompt: str | None) -> None:
        self._image, self._prompt = image, prompt
        self.file = "first.png" if image is None else f"first{image.suffix}"

    def write(self, folder: Path) -> None:
        """Write the image to ``file`` in ``folder``."""
        if self._image is not None:
            shutil.copyfile(self._image, folder / self.file)
            return
        drawn = Image.new("RGB", (336, 336), (150, 150, 150))
        ImageDraw.Draw(drawn).ellipse((128, 128, 208, 208), fill=(214, 40, 40))
        drawn.save(folder / self.file)

    def arguments(self, folder: str) -> list[str]:
        """Return the arguments of ``foveate run`` behind the bundle. ``folder`` is where the image is there.

        The answer is short, unless the user chose the question.
        """
        image = ["--image", f"{folder}/{self.file}"]
        if self._prompt is not None:
            return [self._prompt, *image]
        return [DRAWN if self._image is None else OWN, *image, "--max-new-tokens", str(_MOST_TOKENS)]
