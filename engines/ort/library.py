"""The installed ONNX Runtime: which versions are supported, and why it cannot be imported.

No other module imports ``onnxruntime``. Take what ``load`` returned:
``from foveate.engines.ort.backend import onnxruntime``.
"""

from __future__ import annotations

import importlib.machinery
import sys
import sysconfig
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from foveate.engines.errors import UserError

__all__ = [
    "INSTALL_CUDA",
    "OLDEST",
    "OLDEST_FOR_ORT",
    "load",
    "numbers",
    "probe",
    "refused_dialect",
    "upgrade",
]

OLDEST = (1, 23)
"""Oldest version that is used at all. 1.23.2 is the last one for Python 3.10."""

OLDEST_FOR_ORT = (1, 28)
"""Oldest version that computes the dialect ``ort`` correctly.

Found by running: 1.24 has no kernel for TensorScatter(24). 1.25 to 1.27 answer wrongly if a prompt comes in
two pieces, as in the second turn of a chat (masks of Attention with a cache). The self-test finds both.
"""

_GPU = "'onnxruntime-gpu[cuda,cudnn]'"  # the extras bring the libraries of CUDA that the provider loads

INSTALL_CUDA = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {_GPU}"
"""Commands that install ONNX Runtime with its CUDA provider.

Both distributions have their files in one folder, so the old one is removed first, whichever it is.
"""


def numbers(version: str) -> tuple[int, ...]:
    """Return major and minor number of a version such as "1.28.0"."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def refused_dialect(name: str, version: str) -> str | None:
    """Return why the dialect ``name`` is not used with ONNX Runtime ``version``, or None if it is."""
    if name != "ort" or numbers(version) >= OLDEST_FOR_ORT:
        return None
    why = (
        "lacks a kernel"
        if numbers(version) < (1, 25)
        else "answers wrongly from the second turn of a chat on"
    )
    least = ".".join(map(str, OLDEST_FOR_ORT))
    return f"ONNX Runtime {version} {why} in the dialect ort, expected {least} or newer"


def upgrade(providers: Collection[str] = (), python: tuple[int, int] = sys.version_info[:2]) -> str:
    """Return what to do about a version that is too old for the dialect ``ort``.

    ``providers`` are those of the installed one, by ONNX Runtime's names. ``python`` has major and minor
    number: 1.24 and newer need Python 3.11.
    """
    if python < (3, 11):
        return (
            "take Python 3.11 or newer, or build the bundle with --dialects primitive and compile that: "
            "1.23.2 is the last ONNX Runtime for Python 3.10"
        )
    return f"pip install -U {_GPU if 'CUDAExecutionProvider' in providers else 'onnxruntime'}"


def load() -> ModuleType:
    """Import and return the module ``onnxruntime``.

    Raises ModuleNotFoundError if it is not installed, and UserError if the module of that name is broken or
    is something else.
    """
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == "onnxruntime":
            raise
        raise _broken(" ".join(str(error).split())) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        del sys.modules["onnxruntime"]  # an empty namespace package, which others would take for the library
        raise _broken("it is a folder without the library")
    return onnxruntime


def probe() -> tuple[str | None, list[str], str | None]:
    """Return version, providers, and the fault as a UserError words it, for ``foveate doctor``.

    All are empty if ONNX Runtime is not installed.
    """
    try:
        found = load()
    except ModuleNotFoundError:
        return None, [], None
    except UserError as error:
        return None, [], str(error)
    return found.__version__, found.get_available_providers(), None


def _broken(reason: str) -> UserError:
    """Return the error for an ``onnxruntime`` folder that is left over, incomplete, or somebody else's."""
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
    """Return the folder or file that ``import onnxruntime`` finds, or None."""
    spec = importlib.machinery.PathFinder.find_spec("onnxruntime")
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else Path(spec.origin or "onnxruntime")


def _installed(folder: Path) -> bool:
    """True if ``folder`` is where pip or the system installs libraries."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    parent = folder.absolute().parent
    return parent.name in ("site-packages", "dist-packages") or str(parent) in places
