"""The first question: right for the drawn image, for the user's image, and the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from foveate.calib.scenes.draw import COLOURS
from foveate.jetson.deployment.first_question import DRAWN, OWN, FirstQuestion


@pytest.mark.parametrize(
    ("image", "prompt", "asked", "limited"),
    (
        (None, None, DRAWN, True),
        (Path("a.jpg"), None, OWN, True),
        (None, "Why?", "Why?", False),
        (Path("a.jpg"), "Why?", "Why?", False),
        (None, "", "", False),
    ),
)
def test_the_question_fits_the_image(
    image: Path | None, prompt: str | None, asked: str, limited: bool
) -> None:
    arguments = FirstQuestion(image, prompt).arguments("/there")
    assert arguments[:3] == [asked, "--image", "/there/first" + (image.suffix if image else ".png")]
    assert ("--max-new-tokens" in arguments) == limited


def test_the_drawn_image_is_what_the_question_is_about(tmp_path: Path) -> None:
    """Its colour is one that the checkpoint `shapes` was trained on."""
    first = FirstQuestion(None, None)
    first.write(tmp_path)
    drawn = Image.open(tmp_path / first.file)
    assert drawn.getpixel((168, 168)) == COLOURS["red"] and drawn.getpixel((5, 5)) == (150, 150, 150)


def test_the_users_image_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"bytes")
    first = FirstQuestion(tmp_path / "a.jpg", None)
    first.write(tmp_path)
    assert (tmp_path / first.file).read_bytes() == b"bytes"
