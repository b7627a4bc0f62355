"""The language model at work: takes the items of a prompt and gives the logits of the next token.

The cache is known item by item, so only the items after the common beginning of two prompts are computed.
A prompt with images that are not in the cache is shortened by the in-LLM pruners between the segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.engines.buffer import Buffer
from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.runtime.bundle.manifest import PREFILL_ROWS, Manifest
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.prompt_items import Item, axes_of, extent_of, item_rows, item_runs, positions_of
from foveate.runtime.llm.prompt_rows import PromptRows
from foveate.runtime.llm.segment import Segment
from foveate.runtime.llm.visual_tokens import VisualTokens

__all__ = ["Decoder", "Prefill"]

Left = tuple[np.ndarray, ...]
"""Indices int64 [R] of an image's rows that are left, for each in-LLM pruner. Empty if none ran."""


@dataclass(frozen=True, eq=False)
class Prefill:
    """The logits after a prompt, and for each image of the prompt what the in-LLM pruners left of it."""

    logits: Logits
    left: list[Left]


@dataclass(frozen=True, eq=False)
class _CachedItem:
    """An item in the cache, and what the in-LLM pruners left of it. ``left`` is empty for text."""

    item: Item
    left: Left = ()

    def rows(self, depth: int) -> int:
        """Return the number of rows after ``depth`` in-LLM pruners."""
        return len(self.left[depth - 1]) if depth and self.left else item_rows(self.item)


class Decoder:
    """The engines of the language model with their kv caches: one segment, or several and their pruners.

    ``table`` is the token embedding [V,D].
    """

    def __init__(self, engines: Mapping[str, Engine], table: np.ndarray, manifest: Manifest) -> None:
        self._table, self._mode = Rows(np.asarray(table)[None]), manifest.method.position_mode
        self._max_positions = manifest.decoder.max_positions
        spec = engines[manifest.segments[0][0]].spec
        self._axes = axes_of(spec)
        compact = self._axes == 1 and manifest.method.position_mode_inside == "compact"
        self.segments: list[Segment] = []
        depth = 0
        for name, behind in manifest.segments:
            renumbers = compact and depth > 0
            pruner = None if behind is None else engines.get(behind)
            points = () if behind is None else manifest.method.budgets.get(behind, ())
            self.segments.append(Segment(engines[name], pruner, points, depth, renumbers))
            depth += pruner is not None
        self._prunes = depth > 0
        self._most = min(spec.most_rows, PREFILL_ROWS)
        self._cached: list[_CachedItem] = []
        self._position = 0  # position id of the next row

    @property
    def items(self) -> list[Item]:
        """Return the items in the cache."""
        return [each.item for each in self._cached]

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

    def extent(self, items: Sequence[Item]) -> tuple[int, int]:
        """Return the number of rows and of positions of ``items``."""
        return extent_of(items, self._axes, self._mode)

    def room(self, rows: int, positions: int) -> int:
        """Return how many tokens may follow a prompt of ``rows`` rows and ``positions`` positions.

        0 or less: none.
        """
        return min(self.segments[0].cache.limit - rows, self._max_positions - positions)

    def clear(self) -> None:
        """Forget the cache and free its memory, for example after it was filled with NaN."""
        for segment in self.segments:
            segment.cache.clear()
        self._forget(0)

    def reuse(self, items: Sequence[Item]) -> int:
        """Cut the caches to the items that ``items`` begins with. Return the number of rows that stay.

        The last item is always computed again, since its logits are needed.
        """
        if not all(segment.cache.length for segment in self.segments):  # one may have been lost to an error
            self._cached.clear()
        same = 0
        for cached, new in zip(self._cached, items[:-1], strict=False):
            if not _same(cached.item, new):
                break
            same += 1
        self._forget(same)
        for segment in self.segments:
            segment.cache.cut(sum(each.rows(segment.depth) for each in self._cached))
        return self.length

    def prefill(self, items: Sequence[Item], new_tokens: int) -> Prefill:
        """Compute ``items`` that are not cached and return the logits after them.

        Call ``reuse`` first. Room for ``new_tokens`` more is made.
        """
        rest = items[len(self._cached) :]
        images = [item for item in rest if isinstance(item, VisualTokens)]
        if images and self._prunes:
            found = self._prefill_with_pruning(rest, len(images), new_tokens)
        else:
            found = Prefill(self._prefill(rest, new_tokens), [() for _ in images])
        before = [each.left for each in self._cached if isinstance(each.item, VisualTokens)]
        self._append(rest, found.left)
        return Prefill(found.logits, before + found.left)

    def step(self, token: int) -> Logits:
        """Compute one more token and return the logits after it."""
        logits = self._run(self.embed([token]), self._positions([token]))
        self._append([token], [])
        return logits

    def describe(self, items: Sequence[Item]) -> PromptRows:
        """Return the facts about the rows of ``items``, which follow the cached ones, before any pruner."""
        return PromptRows.of(items, self._positions(items))

    def embed(self, items: Sequence[Item]) -> Rows:
        """Return the rows [T,D] of ``items``."""
        parts = []
        for run in item_runs(items):
            if isinstance(run, VisualTokens):
                assert run.tokens is not None  # only prompts that are measured have images without tokens
                parts.append(run.tokens)
            else:
                parts.append(self._table.take(run))
        return Rows.join(parts)

    def _append(self, items: Sequence[Item], left: Sequence[Left]) -> None:
        of_images = iter(left)
        for item in items:
            image = isinstance(item, VisualTokens)
            self._cached.append(_CachedItem(item, next(of_images) if image else ()))
        self._position += self.extent(items)[1]

    def _forget(self, count: int) -> None:
        """Forget all items but the first ``count``."""
        del self._cached[count:]
        self._position = self.extent(self.items)[1]

    def _prefill(self, items: Sequence[Item], new_tokens: int) -> Logits:
        """Compute ``items`` in all segments, piece by piece."""
        embeds = self.embed(items)
        for segment in self.segments:
            segment.cache.reserve(segment.cache.length + len(embeds) + new_tokens)
        positions = self._positions(items)
        for rows in np.array_split(np.arange(len(embeds)), -(-len(embeds) // self._most)):
            logits = self._run(embeds.take(rows), positions[..., rows])
        return logits

    def _prefill_with_pruning(self, items: Sequence[Item], images: int, new_tokens: int) -> Prefill:
        """Compute ``items`` with the pruners between the segments. ``images`` is the number of images."""
        facts, carried = self.describe(items), dict[str, Buffer]()
        rows = entering = self.segments[0].gather(self.embed(items))
        left: list[list[np.ndarray]] = []
        for segment in self.segments:
            segment.cache.reserve(segment.cache.length + len(facts) + new_tokens)
            facts = replace(facts, positions=segment.places(facts.positions))
            outputs = segment.run(rows, facts.positions)
            if segment.pruner is not None:
                given = {"scored": rows, "inputs_embeds": entering, **outputs}
                rows, facts, carried = segment.prune(given, facts, carried)
                left.append(facts.sources(images))
            elif segment is not self.segments[-1]:
                rows = outputs["hidden"]
        return Prefill(Logits.of(outputs), list(zip(*left, strict=True)))

    def _run(self, embeds: Rows, positions: np.ndarray) -> Logits:
        rows = self.segments[0].gather(embeds)
        for segment in self.segments[:-1]:
            rows = segment.run(rows, positions)["hidden"]
        return Logits.of(self.segments[-1].run(rows, positions))

    def _positions(self, items: Sequence[Item]) -> np.ndarray:
        """Return position ids of ``items`` after the cached ones: int64 [rows], M-RoPE [3, rows].

        They are those in the first segment.
        """
        return positions_of(items, self._position, self._axes, self._mode)


def _same(old: Item, new: Item) -> bool:
    """Return whether two items have the same rows: the same token, or the very same image."""
    if isinstance(old, VisualTokens) or isinstance(new, VisualTokens):
        return old is new
    return old == new
