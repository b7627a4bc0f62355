"""The language model at work: takes the items of a prompt and gives the logits of the next token.

An item is a token id or an image. An image stands for as many rows as it has tokens left. The cache is known
item by item, so only the items after the common beginning of two prompts are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, Symbol
from foveate.runtime.bundle.loading import Manifest
from foveate.runtime.images.token_layout import Layout, single
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.segment import Chunk, Segment
from foveate.runtime.text import chat_prompt

__all__ = ["Decoder", "Item", "VisualTokens", "axes_of", "positions_of", "prompt_ids", "prompt_items"]

_MOST_ROWS = 1024
"""Largest number of rows that are computed together.

ONNX Runtime's attention also computes what the mask hides, so smaller pieces take less time: at 7B sizes a
sixth less for 2,880 tokens, and a third less for 4,000 (docs/measurements/cpu-speed.md).
"""


@dataclass(eq=False)  # two images are the same item only if they are the same object
class VisualTokens:
    """An image before the language model.

    ``tokens`` [R,D], or None if only their number is needed. ``kept`` [R] int64: the image's visual tokens
    that they are, -1 for mixtures. ``total``: the image's number of visual tokens. ``keep``: its budget.
    ``owner`` [total] int64: the row that each visual token went into, or None. ``layout``: where the visual
    tokens lie, None for one line. ``left``: for each in-LLM pruner, the indices [R'] of the rows that it
    left.
    """

    tokens: Rows | None
    kept: np.ndarray
    total: int
    keep: int = 0
    owner: np.ndarray | None = None
    left: list[np.ndarray] = field(default_factory=list)
    layout: Layout | None = None

    @property
    def places(self) -> np.ndarray:
        """Return each row's place in its grid, and that grid's rows and columns: int64 [3,R].

        The place is -1 for mixtures.
        """
        plan = self.layout or single((1, self.total))
        found = np.stack([plan.patch, plan.rows, plan.columns])[:, self.kept.clip(min=0)]
        found[0, self.kept < 0] = -1
        return found

    def rows(self, depth: int) -> int:
        """Return the number of rows after ``depth`` in-LLM pruners, or an upper bound before they ran."""
        return len(self.left[depth - 1] if 0 < depth <= len(self.left) else self.kept)

    def patches(self, cut: int) -> np.ndarray:
        """Return the visual tokens that are left after a cut: int64 [R'], -1 for mixtures."""
        rows = self.left[cut]
        return np.where(rows < 0, -1, self.kept[rows])


Item = int | VisualTokens


def prompt_items(segments: Sequence[chat_prompt.Segment], images: Sequence[VisualTokens]) -> list[Item]:
    """Return the prompt of ``ChatTokenizer.encode_turns`` with the conversation's images in their places."""
    items: list[Item] = []
    for segment in segments:
        if isinstance(segment, chat_prompt.ImageSlot):
            items.append(images[segment.index])
        else:
            items += segment.tolist()
    return items


def prompt_ids(
    segments: Sequence[chat_prompt.Segment], layouts: Sequence[Layout], settings: Mapping[str, Any]
) -> np.ndarray:
    """Return int64 [P]: the token ids of a prompt as Hugging Face's processors write them.

    Each image of ``layouts`` counts as many placeholder tokens as it has visual tokens before pruning.
    ``settings`` are those of ``text.chat_prompt``.
    """
    image = settings["image_token_id"]
    video = settings.get("video_token_id", image)
    found = [np.empty(0, np.int64)]
    for segment in segments:
        if isinstance(segment, chat_prompt.ImageSlot):
            plan = layouts[segment.index]
            found.append(np.full(plan.total, video if plan.is_video else image, np.int64))
        else:
            found.append(segment)
    return np.concatenate(found)


class Decoder:
    """The engines of the language model with their kv caches: one segment, or several and their pruners.

    ``table`` is the token embedding [V,D]. Only a prompt with new images is pruned between the segments.
    """

    def __init__(self, engines: Mapping[str, Engine], table: np.ndarray, manifest: Manifest) -> None:
        self._table, self._mode = Rows(np.asarray(table)[None]), manifest.position_mode
        self._max_positions = manifest.decoder["max_positions"]
        spec = engines[manifest.segments[0][0]].spec
        self._axes = axes_of(spec)
        compact = self._axes == 1 and manifest.position_mode_inside == "compact"
        self.segments: list[Segment] = []
        depth = 0
        for name, pruner in manifest.segments:
            points = manifest.budgets.get(pruner, ())
            found = Segment(
                engines[name], engines.get(pruner), points, depth, renumbers=compact and depth > 0
            )
            self.segments.append(found)
            depth += found.pruner is not None
        length = spec.input("inputs_embeds").shape[1]
        self._most = min(length.max if isinstance(length, Symbol) else length, _MOST_ROWS)
        self.items: list[Item] = []  # the items in the cache
        self._position = 0  # position id of the next row

    @property
    def length(self) -> int:
        """Return the number of rows in the first segment's cache."""
        return self.segments[0].cache.length

    @property
    def name(self) -> str:
        """Return the name of the graph that gives the logits."""
        return self.segments[-1].engine.spec.name

    @property
    def dtype(self) -> str:
        """Return the type in which the logits are computed."""
        return self.segments[-1].engine.spec.output("logits").dtype

    @property
    def allocated(self) -> int:
        """Return the bytes of all caches."""
        return sum(segment.cache.allocated for segment in self.segments)

    @property
    def used(self) -> int:
        """Return the bytes of the caches' written rows."""
        return sum(segment.cache.used for segment in self.segments)

    def rows(self, item: Item, depth: int = 0) -> int:
        """Return the number of rows of an item after ``depth`` pruners."""
        return _rows(item, depth)

    def span(self, item: Item) -> int:
        """Return the number of positions of an item.

        In mode "keep" pruned visual tokens take positions as well.
        """
        return _span(item, self._axes, self._mode)

    def room(self, rows: int, positions: int) -> int:
        """Return how many tokens may follow a prompt of ``rows`` rows and ``positions`` positions. 0 or less:
        none."""
        return min(self.segments[0].cache.limit - rows, self._max_positions - positions)

    def reuse(self, items: Sequence[Item]) -> int:
        """Cut the caches to the items that ``items`` begins with. Return the number of rows that stay.

        The last item is always computed again, since its logits are needed.
        """
        if not all(segment.cache.length for segment in self.segments):  # one may have been lost to an error
            self.items.clear()
        same = 0
        for old, new in zip(self.items, items[:-1], strict=False):
            if old is not new and (
                isinstance(old, VisualTokens) or isinstance(new, VisualTokens) or old != new
            ):
                break
            same += 1
        del self.items[same:]
        self._position = sum(map(self.span, self.items))
        for segment in self.segments:
            segment.cache.cut(sum(self.rows(item, segment.depth) for item in self.items))
        return self.length

    def prefill(self, items: Sequence[Item], new_tokens: int) -> Logits:
        """Compute ``items`` that are not cached and return the logits after them.

        Call ``reuse`` first. Room for ``new_tokens`` more is made.
        """
        rest = items[len(self.items) :]
        embeds = self.embed(rest)
        images = [item for item in rest if isinstance(item, VisualTokens)]
        if images and any(segment.pruner is not None for segment in self.segments):
            logits = self._shorten(embeds, rest, images, new_tokens)
        else:
            for segment in self.segments:
                segment.cache.reserve(segment.cache.length + len(embeds) + new_tokens)
            positions = self._positions(rest)
            for chunk in np.array_split(np.arange(len(embeds)), -(-len(embeds) // self._most)):
                logits = self._run(embeds.take(chunk), positions[..., chunk])
        self._append(rest)
        return logits

    def step(self, token: int) -> Logits:
        """Compute one more token and return the logits after it."""
        logits = self._run(self.embed([token]), self._positions([token]))
        self._append([token])
        return logits

    def _append(self, items: Sequence[Item]) -> None:
        self.items += items
        self._position += sum(map(self.span, items))

    def _run(self, embeds: Rows, positions: np.ndarray) -> Logits:
        rows = self.segments[0].gather(embeds)
        for segment in self.segments:
            outputs = segment.run(rows, positions)
            rows = outputs.get("hidden")
        return Logits.of(outputs)

    def _shorten(
        self, embeds: Rows, items: Sequence[Item], images: Sequence[VisualTokens], new_tokens: int
    ) -> Logits:
        """Compute as ``_run`` does, with the pruners between the segments.

        Sets ``left`` of the ``images``.
        """
        chunk, carried = self.describe(items), {}
        rows = entering = self.segments[0].gather(embeds)
        left: list[list[np.ndarray]] = [[] for _ in images]
        for segment in self.segments:
            segment.cache.reserve(segment.cache.length + len(chunk) + new_tokens)
            chunk = replace(chunk, positions=segment.places(chunk.positions))
            outputs = segment.run(rows, chunk.positions)
            if segment.pruner is None:
                rows = outputs.get("hidden")
                continue
            given = {"scored": rows, "inputs_embeds": entering, **outputs}
            rows, chunk, carried = segment.prune(given, chunk, carried)
            for number, found in enumerate(left):
                found.append(chunk.source[chunk.image == number])
        for image, found in zip(images, left, strict=True):
            image.left = found
        return Logits.of(outputs)

    def describe(self, items: Sequence[Item]) -> Chunk:
        """Return the facts about the rows of ``items`` before any in-LLM pruner.

        The rows follow the cached ones.
        """
        number, parts = 0, []
        for item in items:
            if isinstance(item, VisualTokens):
                rows = len(item.kept)
                facts = np.repeat([[number], [rows], [item.total], [item.keep]], rows, axis=1)
                parts.append(np.stack([facts[0], np.arange(rows), *item.places, *facts[1:]]))
                number += 1
            else:
                parts.append(np.array([[-1], [-1], [-1], [1], [1], [0], [0], [0]]))
        return Chunk(*np.concatenate(parts, axis=1).astype(np.int64), self._positions(items))

    def embed(self, items: Sequence[Item]) -> Rows:
        """Return the rows [T,D] of ``items``."""
        return Rows.join(
            [run.tokens if isinstance(run, VisualTokens) else self._table.take(run) for run in _runs(items)]
        )

    def _positions(self, items: Sequence[Item]) -> np.ndarray:
        """Return position ids of ``items`` after the cached ones: int64 [rows], M-RoPE [3, rows].

        They are those in the first segment.
        """
        return positions_of(items, self._position, self._axes, self._mode)


def axes_of(spec: GraphSpec) -> int:
    """Return the number of position ids per row in a graph of the language model: 1, or 3 with M-RoPE."""
    shape = spec.input("position_ids").shape
    return shape[0] if len(shape) == 3 else 1


def positions_of(items: Sequence[Item], start: int, axes: int = 1, mode: str = "compact") -> np.ndarray:
    """Return position ids of ``items`` from ``start`` on: int64 [rows], or [axes, rows].

    With several axes, images keep their positions in any ``mode``.
    """
    parts = []
    for item in items:
        if isinstance(item, VisualTokens) and (axes > 1 or mode == "keep"):
            # a merged row (-1) gets the position of the kept token before it
            own = np.where(item.kept < 0, np.maximum.accumulate(item.kept), item.kept).clip(min=0)
            own = own if axes == 1 else item.layout.positions[:, own]
        else:
            own = np.arange(_rows(item))
        parts.append(start + (np.tile(own, (axes, 1)) if own.ndim < min(axes, 2) else own))
        start += _span(item, axes, mode)
    return np.concatenate(parts, axis=-1).astype(np.int64)


def _rows(item: Item, depth: int = 0) -> int:
    return item.rows(depth) if isinstance(item, VisualTokens) else 1


def _span(item: Item, axes: int, mode: str) -> int:
    if not isinstance(item, VisualTokens) or (axes == 1 and mode == "compact"):
        return _rows(item)
    return item.total if axes == 1 else item.layout.span


def _runs(items: Sequence[Item]) -> list[list[int] | VisualTokens]:
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
