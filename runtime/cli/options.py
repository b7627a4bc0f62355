"""Options that several verbs share, and how they print timings."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from foveate.runtime.answer import Answer
from foveate.runtime.llm.generation import MAX_NEW_TOKENS, Options

__all__ = ["add_engine", "add_generation", "add_images", "generation", "say", "timing_lines"]


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", help="a compiled engine by its key or the beginning of one")
    parser.add_argument("--threads", type=int, help="threads of engines on the CPU (default: every core)")


def add_images(parser: argparse.ArgumentParser, what: str) -> None:
    """``--image`` and ``--allow-url``; ``runtime.image_source.from_command_line`` reads their values."""
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help=f"a file, pipe, data URL or URL; {what}"
    )
    parser.add_argument("--allow-url", action="store_true", help="let --image download from http and https")


def add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", help='visual tokens kept per picture: 128 or "22.2%%" (default: the bundle\'s)'
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"default: the checkpoint's, else {MAX_NEW_TOKENS}"
    )
    parser.add_argument("--min-new-tokens", type=int, help="no end before (default: the checkpoint's)")
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="ends the answer and is not part of it; repeat for several (default: the checkpoint's)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        help="above 1: words of prompt and answer become less likely; 1.0 switches it off (default: the checkpoint's)",
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        help="so many tokens never follow each other twice; 0 switches it off (default: the checkpoint's)",
    )
    parser.add_argument(
        "--sample", action="store_true", help="with the checkpoint's temperature, top-p and top-k"
    )
    parser.add_argument("--temperature", type=float, help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, help="fewest likeliest tokens that reach this probability")
    parser.add_argument("--top-k", type=int, help="this many likeliest tokens")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument(
        "--keep-special", action="store_true", help="leave special tokens in the text, e.g. marks of boxes"
    )


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``Pipeline.stream`` and ``Chat.stream``."""
    asked = {each.name: getattr(args, each.name) for each in fields(Options)}
    return {"keep": args.keep, "options": Options(**asked)}


def timing_lines(answer: Answer) -> list[str]:
    """Tokens kept and times, for people; ``--json`` has the numbers as they are."""
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
        f"{'decoding':<12}{t.tokens_per_second:10.1f} tokens/s, {len(answer.tokens)} tokens",
        f"{'prompt':<12}{t.prompt_rows:10} rows, {t.reused_rows} of them cached",
        f"{'cache':<12}{t.cache_bytes_allocated / 1e6:10.1f} MB, {t.cache_bytes_used / 1e6:.1f} MB of it used",
    ]
