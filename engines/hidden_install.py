"""Warns when a clone in the current folder hides the installed foveate.

``foveate`` is a namespace package over the folders of the repository. A clone named ``foveate`` in the
current folder therefore counts as part of it. Started from the clone's parent, ``python -c "import
foveate.runtime"`` imports the clone and not the installed package.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = ["installed_elsewhere", "warn_of_hidden"]

_OURS = Path(__file__).resolve().parent


def installed_elsewhere() -> Path | None:
    """Return the folder of the installed foveate that this one hides, or None."""
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
    """Warn once, naming both folders, if this foveate hides an installed one."""
    if other := installed_elsewhere():
        warnings.warn(
            f"foveate is taken from {_OURS.parent}, which hides the one that is installed in {other}. "
            "To use the installed one, start Python from another folder, or take this one off PYTHONPATH.",
            RuntimeWarning,
            stacklevel=3,
        )
