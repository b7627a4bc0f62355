"""Memory of the GPU that is reused: what a buffer gives back serves the next one of about its size."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

__all__ = ["Pool", "rounded"]

_SMALLEST = 256  # bytes; cudaMalloc aligns to as many
_STEPS = 8  # block sizes between a power of two and the next one
_LOOSE = 2  # a free block serves requests down to this part of its size


def rounded(size: int) -> int:
    """Return the size of the block for ``size`` bytes: at most an eighth more, and a multiple of 256."""
    step = max(_SMALLEST, (1 << max(0, size.bit_length() - 1)) // _STEPS)
    return max(_SMALLEST, -(-size // step) * step)


class Pool:
    """Blocks of memory from ``allocate``, which raises MemoryError, and back to ``free``.

    ``wait`` waits until no queued work uses the memory any more. A free block is used again for a request of
    at least half its size, the smallest that fits. Where memory runs out, all free blocks are given back, and
    the request is tried again.
    """

    def __init__(
        self, allocate: Callable[[int], int], free: Callable[[int], None], wait: Callable[[], None]
    ) -> None:
        self._allocate, self._return, self._wait = allocate, free, wait
        self._sizes: dict[int, int] = {}  # address -> bytes, of every block
        self._free: list[tuple[int, int]] = []  # (bytes, address) of free blocks, in order

    @property
    def held(self) -> int:
        """Return the bytes of free blocks."""
        return sum(size for size, _ in self._free)

    def take(self, size: int) -> int:
        """Return the address of at least ``size`` bytes. Raises MemoryError."""
        size = rounded(size)
        place = bisect_left(self._free, (size, 0))
        if place < len(self._free) and self._free[place][0] <= _LOOSE * size:
            return self._free.pop(place)[1]
        address = self.allocate(size)
        self._sizes[address] = size
        return address

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` new bytes that the pool does not own. Raises MemoryError."""
        try:
            return self._allocate(size)
        except MemoryError:
            if not self.release():
                raise
            return self._allocate(size)

    def give(self, address: int) -> None:
        """Take back a block. Work that uses it may still be queued."""
        insort(self._free, (self._sizes[address], address))

    def release(self) -> int:
        """Free every block that nobody uses. Return their bytes."""
        if not self._free:
            return 0
        self._wait()
        gone, self._free = self._free, []
        for _, address in gone:
            del self._sizes[address]
            self._return(address)
        return sum(size for size, _ in gone)
