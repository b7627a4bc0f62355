"""The language model at work: prompt items go in, logits of the next token come out.

An item is a token id or a picture, which is opaque: it stands for as many rows as tokens of it survived. What is in
the cache is known item by item, so a prompt that begins like the last one is computed from where they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines.base import Engine
from foveate.engines.spec import Symbol
from foveate.runtime.cache import KVCache
from foveate.runtime.prompt import ImageSlot, Segment

__all__ = ["Decoder", "Item", "Picture", "prompt_items"]


@dataclass(eq=False)  # two pictures are the same item only when they are the same object
class Picture:
    """A picture after pruning. ``tokens`` [R,D] in the graph's dtype, ``kept`` [R] int64, ``total`` tokens before."""

    tokens: np.ndarray
    kept: np.ndarray
    total: int


Item = int | Picture


def prompt_items(segments: Sequence[Segment], pictures: Sequence[Picture]) -> list[Item]:
    """The prompt of ``ChatTokenizer.encode_turns`` with the conversation's pictures in their places."""
    items: list[Item] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            items.append(pictures[segment.index])
        else:
            items += segment.tolist()
    return items


class Decoder:
    """The engine ``llm`` with its cache. ``mode`` is the bundle's position mode, ``table`` the token embedding [V,D]."""

    def __init__(self, engine: Engine, table: np.ndarray, mode: str, max_positions: int) -> None:
        self._engine, self._table, self._mode = engine, table, mode
        self._max_positions = max_positions
        spec = engine.spec.input("inputs_embeds")
        self._dtype, length = spec.dtype, spec.shape[1]
        self._chunk = length.max if isinstance(length, Symbol) else length
        self.cache = KVCache(engine)
        self.items: list[Item] = []  # what is in the cache
        self._position = 0  # of the next row

    def rows(self, item: Item) -> int:
        return len(item.kept) if isinstance(item, Picture) else 1

    def span(self, item: Item) -> int:
        """How many positions an item takes: in mode "keep" a picture takes those of its pruned tokens as well."""
        return item.total if isinstance(item, Picture) and self._mode == "keep" else self.rows(item)

    def room(self, rows: int, positions: int) -> int:
        """How many tokens may follow a prompt of ``rows`` rows and ``positions`` positions; at most 0 for none."""
        return min(self.cache.limit - rows, self._max_positions - positions)

    def reuse(self, items: Sequence[Item]) -> int:
        """Cut the cache to what ``items`` begins with; the rows that stay. The last item is never among them, since
        its logits are wanted."""
        if not self.cache.length:  # it may have been lost since
            self.items.clear()
        same = 0
        for old, new in zip(self.items, items[:-1], strict=False):
            if old is not new and (isinstance(old, Picture) or isinstance(new, Picture) or old != new):
                break
            same += 1
        del self.items[same:]
        self._position = sum(map(self.span, self.items))
        rows = sum(map(self.rows, self.items))
        self.cache.cut(rows)
        return rows

    def prefill(self, items: Sequence[Item], new_tokens: int) -> np.ndarray:
        """Logits [V] after ``items``, of which ``reuse`` told what is cached; room for ``new_tokens`` more is made."""
        rest = items[len(self.items) :]
        self.cache.reserve(sum(map(self.rows, items)) + new_tokens)
        embeds = np.concatenate([self._embed(item) for item in _runs(rest)]).astype(self._dtype, copy=False)
        positions = self._positions(rest)
        for start in range(0, len(embeds), self._chunk):
            chunk = slice(start, start + self._chunk)
            logits = self._run(embeds[chunk], positions[chunk])
        self._append(rest)
        return logits

    def step(self, token: int) -> np.ndarray:
        """Logits [V] after one more token."""
        embeds = self._embed([token]).astype(self._dtype, copy=False)
        logits = self._run(embeds, self._positions([token]))
        self._append([token])
        return logits

    def _append(self, items: Sequence[Item]) -> None:
        self.items += items
        self._position += sum(map(self.span, items))

    def _run(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows = len(embeds)
        outputs = self._engine.run(
            {
                "inputs_embeds": embeds[None],
                "position_ids": positions[None],
                "write_index": np.array([self.cache.length], np.int64),
                "last": np.array([rows - 1], np.int64),
                **self.cache.feeds(),
            }
        )
        self.cache.length += rows
        return outputs["logits"].numpy()[0, 0]

    def _embed(self, run: list[int] | Picture) -> np.ndarray:
        return run.tokens if isinstance(run, Picture) else self._table[run]

    def _positions(self, items: Sequence[Item]) -> np.ndarray:
        """int64 [rows] of ``items`` behind what is cached."""
        start, parts = self._position, []
        for item in items:
            if isinstance(item, Picture) and self._mode == "keep":
                # a merged row (-1) stands where the survivor before it stands
                own = np.where(item.kept < 0, np.maximum.accumulate(item.kept), item.kept).clip(min=0)
            else:
                own = np.arange(self.rows(item))
            parts.append(start + own)
            start += self.span(item)
        return np.concatenate(parts).astype(np.int64)


def _runs(items: Sequence[Item]) -> list[list[int] | Picture]:
    """Neighbouring tokens joined, so that their embeddings are gathered at once."""
    runs: list[list[int] | Picture] = []
    for item in items:
        if isinstance(item, Picture):
            runs.append(item)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs
