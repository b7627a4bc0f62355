"""``foveate bench``: measure a compiled bundle on this machine (``runtime.measuring.bench``).

The last line of the output is one JSON document; with ``--json`` it is the only one.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.cli import Parser, options
from foveate.runtime.measuring.bench import IMAGE_SIZE, measure, table

__all__ = ["main", "run"]


def main(argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    args = _arguments(argv)
    found = _measured(args)
    if not args.json:
        print("\n".join(table(found)))
    print(json.dumps(found))
    return 0


def run(argv: list[str]) -> dict[str, Any]:
    """Parse the arguments, measure, print the table, and return what was measured."""
    found = _measured(_arguments(argv))
    print("\n".join(table(found)))
    return found


def _arguments(argv: list[str]) -> argparse.Namespace:
    """Return the parsed arguments. Raises UserError for wrong ones."""
    parser = Parser(
        prog="foveate bench",
        description="Measure the speed, memory and energy of a compiled bundle on this machine.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    parser.add_argument(
        "--keep",
        nargs="+",
        help="Measure these budgets of visual tokens, and compare the others with the first "
        "(default: 100%% 33.3%% 22.2%% 11.1%%).",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=40,
        help="Use a prompt with this many text tokens, those of the chat template included (default: 40).",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=IMAGE_SIZE,
        metavar=("WIDTH", "HEIGHT"),
        help="Use an image of this size in pixels; some models make more visual tokens of larger images "
        "(default: 640 480).",
    )
    parser.add_argument(
        "--picture",  # the option's old name
        dest="image_size",
        type=int,
        nargs=2,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=16,
        help="Decode this many tokens in each round (default: 16).",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="Measure each budget this many times (default: 5).",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON document alone (default: print a table before it).",
    )
    options.add_engine(parser)
    args = parser.parse_args(argv)
    for name in ("text_tokens", "new_tokens", "rounds"):
        if getattr(args, name) < 1:
            wrong = name.replace("_", "-")
            raise UserError(
                f"wrong {wrong} | got {getattr(args, name)}, expected 1 or more | leave it out", code=2
            )
    largest = Image.MAX_IMAGE_PIXELS or math.inf
    if min(args.image_size) < 1 or math.prod(args.image_size) > largest:
        raise UserError(
            f"wrong image size | got {args.image_size}, "
            f"expected width and height of at most {largest:g} pixels in all | leave it out",
            code=2,
        )
    return args


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    return measure(
        args.bundle,
        args.keep,
        image_size=args.image_size,
        text_tokens=args.text_tokens,
        new_tokens=args.new_tokens,
        rounds=args.rounds,
        threads=args.threads,
        engine=args.engine,
        progress=options.say,
    )
