"""Prompts that people type: ``<image>`` marks the place of an image among the words.

Only ``foveate run`` and ``foveate chat`` read prompts this way, since their users type the prompt themselves.
Elsewhere (Python, files, requests) a prompt may hold text from strangers, so ``<image>`` stays ordinary text
and an image's place is given by ``turns.IMAGE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from foveate.runtime.text.chat_prompt import ChatTokenizer
from foveate.runtime.text.turns import IMAGE, Part, Prompt

__all__ = ["MARKER", "read_prompt"]

MARKER = "<image>"


def read_prompt(
    text: str, images: int, tokenizer: ChatTokenizer, say: Callable[[str], None] = lambda line: None
) -> Prompt:
    """Return ``text`` split at ``<image>`` if that occurs exactly once per image, else ``text`` unchanged.

    The chat template may put text after an image (for LLaVA-1.5 a line break). It is not doubled if it was
    typed as well. ``say`` gets a line for each thing that the user probably meant in another way.
    """
    for line in _hints(text, images, tokenizer):
        say(f"foveate: {line}")
    settings = tokenizer.settings
    if not images or text.count(MARKER) != images:
        return text
    behind = settings["image"].partition(settings["image_token"])[2]
    words = re.split(f"{MARKER}(?:{re.escape(behind)})?", text)
    parts: list[Part] = [words[0]]
    for word in words[1:]:
        parts += [IMAGE, word]
    return [part for part in parts if part]


def _hints(text: str, images: int, tokenizer: ChatTokenizer) -> list[str]:
    lines, settings, count = [], tokenizer.settings, text.count(MARKER)
    if count and count != images:
        lines.append(
            f"the prompt holds {count} {MARKER} for {images} image{'' if images == 1 else 's'}: {MARKER} is "
            f"taken as ordinary text. To place images among the words, write {MARKER} once for each image."
        )
    openings = [settings["roles"]["user"].strip(), settings["generation"].strip()]
    found = sorted(name for name in tokenizer.special.keys() - {MARKER} if name in text)
    if not found and all(opening and opening in text for opening in openings):
        found = openings
    if found:
        lines.append(
            f"the prompt looks like a whole chat template, since it holds {' and '.join(found)}: these are "
            "taken as ordinary text, and the model's chat template is put around them. "
            "Give the question alone."
        )
    return lines
