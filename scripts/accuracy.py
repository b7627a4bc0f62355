"""Measure the accuracy of pruning methods through exported graphs and the runtime.

The questions are about held-out synthetic scenes, or those of a benchmark.

    python scripts/accuracy.py --docs docs                     every method, 2,000 questions, tables and plots
    python scripts/accuracy.py --methods sppruner fsr:rho=0.7 --budgets 11.1% 32 --questions 140
    python scripts/accuracy.py pope --data POPE --bundle bundles/llava --keep 128      see docs/benchmarks.md

A variant is a method with options, such as ``sppruner`` or ``sppruner:relevance=clip,rho=0.7``. Two methods
are joined with +, such as ``vscan+pyramiddrop``. Every variant answers the same questions at every budget.
Answers are stored in ``--work`` at once, by checkpoint, variant and version of the code. So a run that is
stopped continues where it was. Prints a table; the last line is one JSON document.
"""

from __future__ import annotations

import sys


def main(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-"):
        from evaluation.benchmarks.run import main as command  # needs no torch, so it runs on devices too
    else:
        from evaluation.compare import main as command
    return command(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
