"""The kv cache of a segment: one buffer per layer for keys and one for values.

The segment's graph writes it in place.

Past and present are the same buffer, so a step copies nothing. The cache has as many rows as prompt and
answer need, or the number that was fixed when the engine was built.
"""

from __future__ import annotations

from foveate.engines.buffer import Buffer
from foveate.engines.engine import Engine
from foveate.engines.errors import NoMemoryError
from foveate.engines.spec import Symbol

__all__ = ["KVCache"]

_ROWS = 2  # the axis of rows in a cache tensor [B, Hkv, S, Dh]


class KVCache:
    """A cache with ``capacity`` rows allocated. The first ``length`` of them are written."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = [past for _, past in engine.spec.in_place]
        self._dim = engine.spec.input(self._names[0]).shape[_ROWS]
        self._buffers: dict[str, Buffer] = {}
        self.capacity = 0
        self.length = 0

    @property
    def limit(self) -> int:
        """Return the largest number of rows that the engine takes."""
        return self._dim.max if isinstance(self._dim, Symbol) else self._dim

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows in all. Written rows stay.

        Works layer by layer, so that memory never holds two whole caches. Raises UserError if memory runs
        out. The cache is empty after any exception.
        """
        if rows <= self.capacity:
            return
        sizes = {self._dim.name: rows} if isinstance(self._dim, Symbol) else {}
        try:
            for name in self._names:
                old = self._buffers.pop(name, None)
                kept = old.numpy()[:, :, : self.length] if old is not None and self.length else None
                self._buffers[name] = self._engine.allocate(name, sizes, kept)
        except BaseException as error:  # Ctrl-C as well: a cache with half its layers is useless
            self.clear()
            if isinstance(error, MemoryError):
                raise NoMemoryError(
                    f"no memory for the cache | {rows} rows in {len(self._names)} buffers were wanted "
                    "| ask for fewer new tokens, or keep fewer visual tokens"
                ) from error
            raise
        self.capacity = self._buffers[self._names[0]].shape[_ROWS]

    def clear(self) -> None:
        """Forget all rows and free their memory."""
        self._buffers.clear()
        self.capacity = self.length = 0

    def cut(self, rows: int) -> None:
        """Forget all rows but the first ``rows``."""
        self.length = min(self.length, rows)

    def feeds(self) -> dict[str, Buffer]:
        """Return the buffers by the names of the engine's inputs."""
        return self._buffers

    @property
    def allocated(self) -> int:
        """Return the allocated bytes."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def used(self) -> int:
        """Return the bytes of the written rows."""
        return self.allocated // self.capacity * self.length if self.capacity else 0
