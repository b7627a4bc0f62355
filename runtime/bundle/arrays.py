"""Arrays in a bundle's .npy and .npz files. Nothing is unpickled: that would run code from the bundle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from foveate.engines.errors import UserError

__all__ = ["Archive", "array"]


def array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Return the array of a .npy file. Raises UserError for a damaged file.

    ``mapped``: its values are read when they are used.
    """
    with _in_words(path):
        found = np.lib.format.open_memmap(path, "r") if mapped else np.load(path, allow_pickle=False)
    return _array(found, path)


class Archive:
    """The arrays of a .npz file by their names, each read when it is asked for.

    Raises UserError for a damaged file, and where an array is missing, damaged or pickled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _in_words(path):
            self._arrays = np.load(path, allow_pickle=False)
        if not isinstance(self._arrays, np.lib.npyio.NpzFile):
            raise _damaged(path, "it is no archive of arrays")

    def __enter__(self) -> Archive:  # noqa: PYI034, Self is in typing from Python 3.11 on
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrays.close()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise _damaged(self._path, f"it has no {name}")
        with _in_words(self._path):
            found = self._arrays[name]
        return _array(found, self._path)


def _array(found: object, path: Path) -> np.ndarray:
    """Return what numpy read if it is an array.

    numpy hands out other things as they are: an archive, or the bytes of a member without an array's header.
    """
    if not isinstance(found, np.ndarray):
        raise _damaged(path, "it holds something else than arrays")
    return found


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged | {why} | copy the bundle again, or build it again")
