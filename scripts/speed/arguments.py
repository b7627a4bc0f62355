"""Options that the commands that measure rivals share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_rounds"]


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """Add rounds, threads, the folder of the rivals' models, and ``--serve``, which starts one contender."""
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds (default: 3).")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads (default: 2).")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("/tmp/foveate-rivals"),
        help="Folder for the rivals' models (default: /tmp/foveate-rivals).",
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
