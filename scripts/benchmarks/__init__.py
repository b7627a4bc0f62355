"""Real benchmarks on real checkpoints, from local files: one file each, with the official layout, prompts and scoring.

A benchmark is a module with

    NEW_TOKENS                                  tokens an answer may have
    load(path: Path) -> Iterator[Sample]        its questions, from the directory or file at ``path``
    score(samples, answers) -> dict             the official numbers; ``answers`` are texts, one per sample

and, where a server does the scoring, ``submit(samples, answers, file)``. Prompts are those of LLaVA-1.5's evaluation.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from foveate.engines.errors import unknown

__all__ = ["NAMES", "benchmark"]

NAMES = ("gqa", "mmbench", "mme", "pope", "refcoco", "scienceqa", "textvqa")


def benchmark(name: str) -> ModuleType:
    """Raises UserError for a name that is none."""
    if name not in NAMES:
        raise unknown("benchmark", name, NAMES)
    return importlib.import_module(f"{__name__}.{name}")
