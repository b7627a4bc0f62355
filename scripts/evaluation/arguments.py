"""Options that the commands of accuracy share."""

from __future__ import annotations

import argparse
from pathlib import Path

from foveate.calib.scenes.questions import HELD_OUT

__all__ = ["add_questions", "add_work", "add_workers"]


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is asked: checkpoint, budgets, and which questions."""
    parser.add_argument(
        "--model",
        default="scripts/shapes",
        help="Folder or name of the checkpoint (default: scripts/shapes).",
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=["33.3%", "22.2%", "11.1%", "5.6%"],
        help="Budgets as in --keep (default: 33.3%% 22.2%% 11.1%% 5.6%%).",
    )
    parser.add_argument("--questions", type=int, default=2000, help="Number of questions (default: 2000).")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=HELD_OUT,
        help="Seed of the first scene. Tune options on other seeds than those that are reported "
        f"(default: {HELD_OUT}).",
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the folder that the commands share."""
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("bundles/accuracy"),
        help="Folder for bundles and answers (default: bundles/accuracy).",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the number of processes."""
    parser.add_argument(
        "--workers", type=int, default=2, help="Number of processes, with one thread each (default: 2)."
    )
