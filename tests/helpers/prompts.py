"""Prompts of a checkpoint's processor files: ours, and transformers'."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from PIL import Image

from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot
from foveate.runtime.text.turns import Turn

PATCHES = 16  # visual tokens of an image in the tiny checkpoint
NOW = datetime(2026, 2, 3, 4, 5, 6)
INTERLEAVED = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}"
)


def ids_of(ours: ChatTokenizer, turns: list[Turn], generation: bool = True) -> list[int]:
    """Our ids, with image tokens in the places of images."""
    slot = [ours.settings["image_token_id"]] * PATCHES
    segments = ours.encode_turns(turns, generation=generation, now=NOW)
    return [i for s in segments for i in (slot if isinstance(s, ImageSlot) else s.tolist())]


def expected(theirs, turns: list[Turn], generation: bool = True) -> list[int]:
    """Transformers' ids."""
    image = Image.fromarray(np.zeros((56, 56, 3), np.uint8))
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": image}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=generation)
    return ids[0] if ids and isinstance(ids[0], list) else ids
