"""Real benchmarks on real checkpoints, from local files.

Each benchmark is one module, with the official file layout, prompts and scoring. It has

    NEW_TOKENS                                  most tokens of an answer
    load(path: Path) -> Iterator[Sample]        its questions, from the folder or file ``path``
    score(samples, answers) -> dict             the official numbers; ``answers`` are texts, one per sample

and, if a server does the scoring, ``submit(samples, answers, file)``. Prompts are those of LLaVA-1.5's
evaluation.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from foveate.engines.errors import unknown

__all__ = ["NAMES", "benchmark"]

NAMES = ("gqa", "mmbench", "mme", "pope", "refcoco", "scienceqa", "textvqa")


def benchmark(name: str) -> ModuleType:
    """Return the benchmark ``name``. Raises UserError for an unknown name."""
    if name not in NAMES:
        raise unknown("benchmark", name, NAMES)
    return importlib.import_module(f"{__name__}.{name}")
