"""Options that several verbs share, and the printing of progress and timings."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from foveate.engines.backend import Option
from foveate.engines.targets import TARGETS
from foveate.runtime.answer import Answer
from foveate.runtime.llm.generation import MAX_NEW_TOKENS, Options

__all__ = [
    "add_compilation",
    "add_engine",
    "add_generation",
    "add_images",
    "compilation",
    "generation",
    "say",
    "timing_lines",
]


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--threads``."""
    parser.add_argument(
        "--engine",
        help="Use the compiled engine with this key, or whose key begins like this; `foveate inspect` lists "
        "the keys (default: the engine that fits this machine).",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="Use this many CPU threads in engines that run on the CPU (default: one per core).",
    )


def add_compilation(parser: argparse.ArgumentParser) -> None:
    """Add the options of every target, in one group per backend. ``compilation`` reads their values."""
    groups: dict[str, list[Option]] = {}
    for target in sorted(TARGETS.values(), key=lambda target: target.title):
        known = groups.setdefault(target.title, [])
        known += [option for option in target.options if option not in known]
    for title, found in groups.items():
        group = parser.add_argument_group(title)
        for option in found:
            if option.kind == "switch":
                group.add_argument(option.flag, action="store_true", help=option.help)
            elif option.kind == "number":
                group.add_argument(option.flag, type=int, metavar=option.metavar, help=option.help)
            else:
                group.add_argument(option.flag, metavar=option.metavar, help=option.help)


def compilation(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options that ``add_compilation`` added, for ``compile_bundle``."""
    values: dict[str, Any] = {}
    for option in (option for target in TARGETS.values() for option in target.options):
        given = getattr(args, option.name)
        if given and option.kind == "names":
            given = [name.strip().upper() for name in given.split(",")]
        values[option.name] = given
    return values


def add_images(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--image`` and ``--allow-url``. ``images.image_source.from_command_line`` reads their values.

    ``what`` is a sentence about when the images are shown and how often the option may be given.
    """
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help=f"Show the model this image: a file, a pipe, a data URL, or a URL. {what} (default: no image).",
    )
    parser.add_argument(
        "--allow-url",
        action="store_true",
        help="Let --image download from http and https addresses (default: they are refused).",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of generation. ``generation`` reads their values."""
    parser.add_argument(
        "--keep",
        help="Keep this many visual tokens of each image: a count such as 128, or a percentage such as "
        '"22.2%%" (default: the bundle\'s).',
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help="Stop the answer after this many tokens (default: the checkpoint's limit, or "
        f"{MAX_NEW_TOKENS} where it has none).",
    )
    parser.add_argument(
        "--min-new-tokens",
        type=int,
        help="Do not let the answer end before it has this many tokens (default: the checkpoint's minimum).",
    )
    parser.add_argument(
        "--stop",
        type=str,
        action="append",
        metavar="TEXT",
        help="End the answer where this text would appear; the text itself is not printed. Repeat the option "
        "for several texts (default: the checkpoint's stop strings).",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        help="Make tokens that the prompt or the answer already holds less likely (above 1) or more likely "
        "(below 1); 1.0 switches this off (default: the checkpoint's penalty).",
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        help="Let no sequence of this many tokens occur twice in prompt and answer; 0 switches this off "
        "(default: the checkpoint's size).",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="Draw each token at random, with the checkpoint's temperature, top-p and top-k "
        "(default: always take the likeliest token).",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="Draw each token at random with this temperature; 0 always takes the likeliest token "
        "(default: 0, or the checkpoint's with --sample).",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        help="Draw only among the likeliest tokens whose probabilities add up to this number "
        "(default: among all, or the checkpoint's with --sample).",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        help="Draw only among this many of the likeliest tokens "
        "(default: among all, or the checkpoint's with --sample).",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="Start the random numbers from this seed, so that the same draws can be repeated "
        "(default: a fresh seed).",
    )
    parser.add_argument(
        "--keep-special",
        action="store_true",
        help="Print special tokens, such as the marks around boxes, as part of the text "
        "(default: they are left out).",
    )


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for ``Pipeline.stream`` and ``Chat.stream``."""
    asked = {each.name: getattr(args, each.name) for each in fields(Options)}
    return {"keep": args.keep, "options": Options(**asked)}


def timing_lines(answer: Answer) -> list[str]:
    """Return lines for people: tokens kept, and times. ``--json`` gives the raw numbers."""
    t = answer.timings
    stages = [(name, getattr(t, name)) for name in ("preprocess", "vision", "prune", "prefill", "decode")]
    return [
        *(
            f"{'kept':<12}{len(kept):10} of {plan.total} visual tokens ({len(kept) / plan.total:.1%})"
            for kept, plan in zip(answer.kept, answer.layouts, strict=True)
        ),
        *(f"{name:<12}{seconds * 1e3:10.1f} ms" for name, seconds in stages),
        f"{'first token':<12}{t.first_token * 1e3:10.1f} ms",
        f"{'total':<12}{t.total * 1e3:10.1f} ms",
        f"{'decoding':<12}{t.tokens_per_second:10.1f} tokens/s, {len(answer.tokens)} token(s)",
        f"{'prompt':<12}{t.prompt_rows:10} rows, {t.reused_rows} of them cached",
        f"{'cache':<12}{t.cache_bytes_allocated / 1e6:10.1f} MB, {t.cache_bytes_used / 1e6:.1f} MB used",
    ]
