"""Items of a prompt: token ids and images, in order. An image stands for as many rows as it has tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveate.engines.spec import GraphSpec
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.text.chat_prompt import ImageSlot, Segment

__all__ = [
    "Item",
    "axes_of",
    "extent_of",
    "item_rows",
    "item_runs",
    "positions_of",
    "prompt_ids",
    "prompt_items",
]

Item = int | VisualTokens


def prompt_items(segments: Sequence[Segment], images: Sequence[VisualTokens]) -> list[Item]:
    """Return the prompt of ``ChatTokenizer.encode_turns`` with the conversation's images in their places."""
    items: list[Item] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            items.append(images[segment.index])
        else:
            items += segment.tolist()
    return items


def prompt_ids(
    segments: Sequence[Segment], layouts: Sequence[Layout], settings: Mapping[str, Any]
) -> np.ndarray:
    """Return int64 [P]: the token ids of a prompt as Hugging Face's processors write them.

    Each image of ``layouts`` counts as many placeholder tokens as it has visual tokens before pruning.
    ``settings`` are those of ``text.chat_prompt``.
    """
    image = settings["image_token_id"]
    video = settings.get("video_token_id", image)
    found = [np.empty(0, np.int64)]
    for segment in segments:
        if isinstance(segment, ImageSlot):
            layout = layouts[segment.index]
            found.append(np.full(layout.total, video if layout.is_video else image, np.int64))
        else:
            found.append(segment)
    return np.concatenate(found)


def axes_of(spec: GraphSpec) -> int:
    """Return the number of position ids per row in a graph of the language model: 1, or 3 with M-RoPE."""
    shape = spec.input("position_ids").shape
    if len(shape) < 3:
        return 1
    assert isinstance(shape[0], int)  # the axes of M-RoPE are always fixed
    return shape[0]


def positions_of(items: Sequence[Item], start: int, axes: int = 1, mode: str = "compact") -> np.ndarray:
    """Return position ids of ``items`` from ``start`` on: int64 [rows], or [axes, rows].

    With several axes, images keep their positions in any ``mode``.
    """
    parts = []
    for item in items:
        if isinstance(item, VisualTokens) and (axes > 1 or mode == "keep"):
            # a merged row (-1) gets the position of the kept token before it
            own = np.where(item.kept < 0, np.maximum.accumulate(item.kept), item.kept).clip(min=0)
            if axes > 1:
                assert item.layout.positions is not None  # with M-RoPE every layout has them
                own = item.layout.positions[:, own]
        else:
            own = np.arange(item_rows(item))
        parts.append(start + (np.tile(own, (axes, 1)) if own.ndim < min(axes, 2) else own))
        start += _span(item, axes, mode)
    return np.concatenate(parts, axis=-1).astype(np.int64)


def item_rows(item: Item) -> int:
    """Return the number of rows of an item on entering the language model."""
    return len(item) if isinstance(item, VisualTokens) else 1


def extent_of(items: Sequence[Item], axes: int, mode: str) -> tuple[int, int]:
    """Return the number of rows and of positions of ``items``.

    In mode "keep" pruned visual tokens take positions as well.
    """
    return sum(map(item_rows, items)), sum(_span(item, axes, mode) for item in items)


def _span(item: Item, axes: int, mode: str) -> int:
    """Return the number of positions of an item."""
    if not isinstance(item, VisualTokens) or (axes == 1 and mode == "compact"):
        return item_rows(item)
    return item.total if axes == 1 else item.layout.span


def item_runs(items: Sequence[Item]) -> list[list[int] | VisualTokens]:
    """Join neighbouring tokens, so that their embeddings are gathered at once."""
    runs: list[list[int] | VisualTokens] = []
    for item in items:
        if isinstance(item, VisualTokens):
            runs.append(item)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs
