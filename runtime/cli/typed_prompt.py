"""Prompts that people type: ``<image>`` may stand where an image stands among the words.

Only ``foveate run`` and ``foveate chat`` read prompts so, each its own user's. Elsewhere (in Python, in
files, in requests) a prompt may hold what strangers wrote, and ``<image>`` stays ordinary text: who means an
image says ``turns.IMAGE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain, repeat

from foveate.runtime.text.chat_prompt import ChatTokenizer
from foveate.runtime.text.turns import IMAGE, Prompt

__all__ = ["MARKER", "read_prompt"]

MARKER = "<image>"


def read_prompt(
    text: str, images: int, tokenizer: ChatTokenizer, say: Callable[[str], None] = lambda line: None
) -> Prompt:
    """``text``, cut at ``<image>`` where that stands there exactly once for each of ``images``; else as it
    is.

    What the chat format puts behind an image (for LLaVA-1.5 a line break) is not doubled where it was typed
    as well. ``say`` gets a line for each thing that was probably meant otherwise than it is taken.
    """
    for line in _hints(text, images, tokenizer):
        say(f"foveate: {line}")
    settings = tokenizer.settings
    if not images or text.count(MARKER) != images:
        return text
    behind = settings["image"].partition(settings["image_token"])[2]
    words = re.split(f"{MARKER}(?:{re.escape(behind)})?", text)
    return [part for part in chain(*zip(words, [*repeat(IMAGE, images), ""], strict=True)) if part]


def _hints(text: str, images: int, tokenizer: ChatTokenizer) -> list[str]:
    lines, settings, count = [], tokenizer.settings, text.count(MARKER)
    if count and count != images:
        lines.append(
            f"the prompt holds {count} {MARKER} for {images} image{'' if images == 1 else 's'}: {MARKER} is taken as "
            f"ordinary text. To place images among the words, write {MARKER} once for each image."
        )
    openings = [settings["roles"]["user"].strip(), settings["generation"].strip()]
    found = sorted(name for name in tokenizer.special.keys() - {MARKER} if name in text)
    if not found and all(opening and opening in text for opening in openings):
        found = openings
    if found:
        lines.append(
            f"the prompt looks like a whole chat template, since it holds {' and '.join(found)}: these are taken as "
            "ordinary text, and the model's chat template is put around them. Give the question alone."
        )
    return lines
