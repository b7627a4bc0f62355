"""A lazy selection of rows [R,...] from several tensors.

Selecting and joining rows edits indices only. The rows stay where they were computed until ``Engine.gather``
copies them, on the device if they are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from foveate.engines.buffer import Feed, host

__all__ = ["Rows"]


class Rows:
    """A selection of rows from one or more source tensors, at first all rows of ``source [A,B,...]``.

    The first two axes of a source count as one axis of A*B rows. ``take`` and ``join`` return new selections.
    ``sources`` are referenced, not copied.
    """

    def __init__(self, source: Feed) -> None:
        first, second, *rest = source.shape
        self.sources: tuple[Feed, ...] = (source,)
        # [R]: indices into the rows of all sources, counted one source after another
        self._at = np.arange(first * second)
        self._rest = tuple(rest)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate selections. Raises ValueError if their rows differ in shape."""
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
        """Select rows by ``index`` as NumPy does: -1 is the last one."""
        return self._of(self.sources, self._at[index], self._rest)

    def __len__(self) -> int:
        return len(self._at)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the selection: the number of rows, then the shape of a row."""
        return len(self), *self._rest

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each run of rows from one source: the source's number, and the int64 indices of its rows."""
        if len(self.sources) == 1:
            yield 0, self._at
            return
        starts = np.cumsum([0, *map(_count, self.sources)])
        numbers = np.searchsorted(starts, self._at, side="right") - 1
        for at in np.split(np.arange(len(self)), np.flatnonzero(np.diff(numbers)) + 1):
            number = int(numbers[at[0]]) if len(at) else 0
            yield number, self._at[at] - starts[number]

    def numpy(self, dtype: str | None = None) -> np.ndarray:
        """Return the rows on the host, [R,...], in ``dtype`` or the dtype of the sources."""
        hosts = list(map(host, self.sources))
        found = [hosts[number].reshape(-1, *self._rest)[rows] for number, rows in self.parts()]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def _count(source: Feed) -> int:
    return source.shape[0] * source.shape[1]
