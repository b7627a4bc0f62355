"""Turns of a conversation: the speaker, and the words and images in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.engines.errors import UserError

__all__ = ["IMAGE", "ImagePart", "Part", "Prompt", "Turn", "user_turn"]


@dataclass(frozen=True)
class ImagePart:
    """The place of an image among words. The first place is that of the first image, and so on."""


IMAGE = ImagePart()
Part = str | ImagePart
Prompt = str | Sequence[Part]
"""A user's question: words, with the images before them, or words and places of images in order."""


@dataclass(frozen=True, init=False)
class Turn:
    """One message: ``Turn("user", parts=["Is ", IMAGE, " like ", IMAGE, "?"])``.

    ``Turn("user", "Which is larger?", 2)`` has its images before its text. A text of None means no text,
    for a turn of images alone. "" is an empty text, which some chat templates treat differently.
    """

    role: str
    parts: tuple[Part, ...]

    def __init__(
        self, role: str, text: str | None = None, images: int = 0, *, parts: Sequence[Part] | None = None
    ) -> None:
        if parts is None:
            parts = [*[IMAGE] * images, *([] if text is None else [text])]
        elif text is not None or images:
            raise ValueError("a turn has parts, or a text and a number of images, not both")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def texts(self) -> list[str]:
        """Return the words between the images, in order."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def text(self) -> str | None:
        """Return the words without the images. Several texts are joined by a blank."""
        texts = self.texts
        if len(texts) > 1:
            return " ".join(text.strip() for text in texts)
        return texts[0] if texts else None

    @property
    def images(self) -> int:
        """Return the number of images of the turn."""
        return len(self.parts) - len(self.texts)


def user_turn(prompt: Prompt, images: int) -> Turn:
    """Return the user's turn with ``images`` images: before a text, or in the places in ``prompt``.

    Raises UserError (code 2) for parts of another type, for a prompt without words, or if the numbers of
    places and images differ.
    """
    if strange := [part for part in prompt if not isinstance(part, str | ImagePart)]:
        raise UserError(
            f"a prompt is a text, or texts and IMAGE in order "
            f"| got a part of type {type(strange[0]).__name__} "
            "| give the images beside the prompt, and IMAGE (foveate.runtime.text.turns) in their places",
            code=2,
        )
    turn = Turn("user", prompt, images) if isinstance(prompt, str) else Turn("user", parts=prompt)
    if not turn.images:  # the prompt names no places
        turn = Turn("user", parts=[*[IMAGE] * images, *turn.texts])
    if turn.images != images:
        raise UserError(
            f"places and images differ in number | got {turn.images} places in the prompt, {images} images "
            "| name one place for each image, or none to have all of them before the text",
            code=2,
        )
    if not any(text.strip() for text in turn.texts):
        raise UserError(
            "the prompt is empty | expected a question or an instruction | give some text", code=2
        )
    return turn
