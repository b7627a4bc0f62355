"""Writes a plan from the builder to its file.

It is hashed as it is written, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError

__all__ = ["PlanFile", "serialize", "written"]


class PlanFile:
    """An open plan file. ``size`` in bytes and ``digest`` (SHA-256) cover what was written so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write ``data``: bytes, or a memory object of TensorRT. Return the number of bytes."""
        self._file.write(data)
        self.digest.update(data)
        count = memoryview(data).nbytes
        self.size += count
        return count


@contextlib.contextmanager
def written(path: Path) -> Iterator[PlanFile]:
    """Yield a file that gets the name ``path`` when the block succeeds, and is removed when it raises.

    Raises UserError if it cannot be written.
    """
    try:
        with atomic_file(path) as part, part.open("wb") as file:
            yield PlanFile(file)
    except OSError as error:
        raise UserError(
            f"cannot write {path.name} | {error.strerror} | free some space where the bundle stands"
        ) from error


def serialize(trt: ModuleType, builder: Any, network: Any, config: Any, file: PlanFile) -> bool:
    """Build the network into ``file``. Return False if TensorRT could not.

    The plan is streamed if the binding can do that. Otherwise the plan of a large model is in memory a second
    time. Raises OSError.
    """
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            file.write(plan)
        return plan is not None
    failed: list[OSError] = []

    base: Any = trt.IStreamWriter  # a class without types

    class Writer(base):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # do not raise through TensorRT; it takes a short count for a failure
                failed.append(error)
                return 0

    built = builder.build_serialized_network_to_stream(network, config, Writer())
    if failed:
        raise failed[0]
    return built
