"""ONNX Runtime as it is installed: which of its versions serve, and why it cannot be imported where it cannot.

Nothing else imports ``onnxruntime``: ``from foveate.engines.ort.backend import onnxruntime`` takes what ``load`` returned.
"""

from __future__ import annotations

import importlib.machinery
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from foveate.engines.errors import UserError

__all__ = ["OLDEST", "OLDEST_FOR_ORT", "UPGRADE", "load", "numbers", "probe", "refused_dialect"]

OLDEST = (1, 23)
"""The oldest that is used at all; 1.23.2 is the last one for Python 3.10."""

OLDEST_FOR_ORT = (1, 28)
"""The oldest that computes the dialect ``ort``. Found by running: 1.24 has no kernel TensorScatter(24), and 1.25 to 1.27
answer wrongly where a prompt comes in two pieces, as in the second turn of a chat (masks of Attention with a cache)."""

UPGRADE = "pip install -U onnxruntime (1.24 and newer need Python 3.11)"


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version such as "1.28.0"."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def refused_dialect(name: str, version: str) -> str | None:
    """Why ONNX Runtime ``version`` does not get the dialect ``name``, or None."""
    if name != "ort" or numbers(version) >= OLDEST_FOR_ORT:
        return None
    why = (
        "lacks a kernel"
        if numbers(version) < (1, 25)
        else "answers wrongly from the second turn of a chat on"
    )
    least = ".".join(map(str, OLDEST_FOR_ORT))
    return f"ONNX Runtime {version} {why} in the dialect ort, expected {least} or newer"


def load() -> ModuleType:
    """The module ``onnxruntime``. Raises ModuleNotFoundError where it is not installed, UserError where what is found
    under its name is not it, or is broken."""
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == "onnxruntime":
            raise
        raise _broken(" ".join(str(error).split())) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        del sys.modules["onnxruntime"]  # an empty namespace, which others would take for the library
        raise _broken("it is a folder without the library")
    return onnxruntime


def probe() -> tuple[str | None, list[str], str | None]:
    """For ``foveate doctor``: version, providers, and what is wrong with it (as a UserError says it). All are empty
    where it is not installed."""
    try:
        found = load()
    except ModuleNotFoundError:
        return None, [], None
    except UserError as error:
        return None, [], str(error)
    return found.__version__, found.get_available_providers(), None


def _broken(reason: str) -> UserError:
    """For a folder of this name that is not the library: left over, not whole, or somebody else's."""
    folder = _found()
    if folder is not None and not _installed(folder):
        return UserError(
            f"{folder} hides the library onnxruntime | {reason} "
            "| start from another folder, or take this one off PYTHONPATH"
        )
    return UserError(
        f"onnxruntime cannot be imported, as when it was removed in part | {folder}: {reason} "
        f"| rm -r {folder} && pip install --force-reinstall onnxruntime"
    )


def _found() -> Path | None:
    """The folder, or the file, that ``import onnxruntime`` finds."""
    spec = importlib.machinery.PathFinder.find_spec("onnxruntime")
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else Path(spec.origin or "onnxruntime")


def _installed(folder: Path) -> bool:
    """Whether it is where pip, or the system, puts libraries."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    parent = folder.absolute().parent
    return parent.name in ("site-packages", "dist-packages") or str(parent) in places
