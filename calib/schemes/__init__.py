"""Quantization schemes, one file each. ``scheme`` describes what a scheme's module has."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from foveate.engines.errors import unknown

__all__ = ["load", "names"]


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem != "scheme")


def load(name: str) -> ModuleType:
    if name not in names():
        raise unknown("quantization scheme", name, names())
    return importlib.import_module(f"{__name__}.{name}")
