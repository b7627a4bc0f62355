"""Rows [R,...] that are gathered from several places when somebody computes with them, and not before.

What is put together on the way to an engine are row numbers; the numbers in the rows stay where they were computed until
``Engine.gather`` copies them, on the device where they lie there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from foveate.engines.engine import Feed, host

__all__ = ["Rows"]


class Rows:
    """All rows of ``source [A,B,...]``, those of its first two axes; which of them, and of what else, ``take`` and ``join``
    say. ``sources`` are held, not copied."""

    def __init__(self, source: Feed) -> None:
        first, second, *rest = source.shape
        self.sources: tuple[Feed, ...] = (source,)
        self._at = np.arange(
            first * second
        )  # [R], where the rows of all sources are counted one after another
        self._rest = tuple(rest)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """One behind the other. Raises ValueError where they are not equally wide."""
        if len(parts) == 1:
            return parts[0]
        if len(widths := {part._rest for part in parts}) != 1:
            raise ValueError(f"rows that do not fit each other | got {sorted(widths)}, expected one shape")
        starts = np.cumsum([0, *(sum(map(_count, part.sources)) for part in parts[:-1])])
        at = np.concatenate([start + part._at for start, part in zip(starts, parts, strict=True)])
        return cls._of([source for part in parts for source in part.sources], at, parts[0]._rest)

    @classmethod
    def _of(cls, sources: Sequence[Feed], at: np.ndarray, rest: tuple[int, ...]) -> Rows:
        made = cls.__new__(cls)
        made.sources, made._at, made._rest = tuple(sources), at, rest
        return made

    def take(self, index: np.ndarray | Sequence[int] | slice) -> Rows:
        """The rows that ``index`` picks as NumPy does, -1 for the last one."""
        return self._of(self.sources, self._at[index], self._rest)

    def __len__(self) -> int:
        return len(self._at)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._rest

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Neighbouring rows of one source together: the source's number, and which of its rows, int64."""
        if len(self.sources) == 1:
            yield 0, self._at
            return
        starts = np.cumsum([0, *map(_count, self.sources)])
        numbers = np.searchsorted(starts, self._at, side="right") - 1
        for at in np.split(np.arange(len(self)), np.flatnonzero(np.diff(numbers)) + 1):
            number = int(numbers[at[0]]) if len(at) else 0
            yield number, self._at[at] - starts[number]

    def numpy(self, dtype: str | None = None) -> np.ndarray:
        """On the host: [R,...], in ``dtype`` or that of the sources."""
        hosts = list(map(host, self.sources))
        found = [hosts[number].reshape(-1, *self._rest)[rows] for number, rows in self.parts()]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def _count(source: Feed) -> int:
    return source.shape[0] * source.shape[1]
