"""Says when a clone in the current folder hides the installed foveate.

``foveate`` is a namespace over the folders of the repository, so a clone of that name in the current folder is one of
its places: from the clone's parent, ``python -c "import foveate.runtime"`` takes the clone and not what is installed.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = ["installed_elsewhere", "warn_of_hidden"]

_OURS = Path(__file__).resolve().parent


def installed_elsewhere() -> Path | None:
    """The folder of an installed foveate whose place this one takes, or None."""
    if _OURS.parents[1].name in ("site-packages", "dist-packages"):
        return None
    for place in list(sys.modules["foveate"].__path__)[1:]:
        for finder in sys.meta_path:
            spec = finder.find_spec("foveate.engines", [place]) if hasattr(finder, "find_spec") else None
            other = Path(spec.origin).resolve().parent if spec and spec.origin else _OURS
            if other != _OURS:
                return other.parent
    return None


def warn_of_hidden() -> None:
    """One warning that names both folders."""
    if other := installed_elsewhere():
        warnings.warn(
            f"foveate is taken from {_OURS.parent}, which hides the one that is installed in {other}. Start Python from "
            "another folder, or take this one off PYTHONPATH, to use that.",
            RuntimeWarning,
            stacklevel=3,
        )
