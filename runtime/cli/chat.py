"""``foveate chat``: a conversation about images. Each line is a turn, and all turns share one kv cache.

New images stand before the question, or where it holds ``<image>`` exactly once for each of them. Ctrl-C
during an answer stops it and forgets the turn. Ctrl-C at the prompt ends the program, as does the end of the
input.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.cli import Parser, options
from foveate.runtime.cli.typed_prompt import read_prompt
from foveate.runtime.images.image_source import STANDARD_INPUT, ImageSource, read_once
from foveate.runtime.pipeline import Chat, Pipeline
from foveate.runtime.text.turns import Prompt

__all__ = ["main"]

_HELP = (
    "/image FILE shows an image with the next question, /reprune prunes all images again for the next "
    "question, /quit ends"
)


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    args = _parser().parse_args(argv)
    if sys.stdin is None:
        raise UserError(
            "the standard input is closed | chat reads the questions there "
            "| leave out <&-, or use foveate run",
            code=2,
        )
    generation = options.generation(args)
    images = [_image(name, args.allow_url) for name in args.image]
    pipe = Pipeline.load(args.bundle, args.engine, threads=args.threads, progress=options.say)
    chat, reprune, code = pipe.chat(args.system), False, 0
    interactive = sys.stdin.isatty()
    if interactive:
        options.say(_HELP)
    for line in _lines(interactive):
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/help":
            options.say(_HELP)
        elif command == "/image":
            images.append(rest.strip())
        elif command == "/reprune":
            reprune = True
        elif command.startswith("/"):
            options.say(f"no such command: {command} | {_HELP}")
        else:
            try:
                shown = [_image(each, args.allow_url) for each in images]
                prompt = read_prompt(_text(line), len(shown), pipe.tokenizer, options.say)
                _turn(chat, prompt, {"image": shown, "reprune": reprune, **generation}, args.timings)
            except UserError as error:
                options.say(f"foveate: {' '.join(str(error).split())}")
                code = code if interactive else error.code
            images, reprune = [], False
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="foveate chat", description=f"Talk about images, turn by turn. Commands: {_HELP}.")
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    options.add_images(parser, "It is shown with the first turn. Repeat the option for several images")
    parser.add_argument(
        "--system",
        type=str,
        help="Open the conversation with this system message "
        "(default: none; some chat templates add their own).",
    )
    options.add_generation(parser)
    options.add_engine(parser)
    parser.add_argument(
        "--timings",
        action="store_true",
        help="Print the tokens kept and the times to stderr after each answer "
        "(default: they are not printed).",
    )
    return parser


def _image(source: ImageSource, allow_url: bool) -> ImageSource:
    if isinstance(source, str) and source in STANDARD_INPUT:
        raise UserError(
            "the image cannot come from the standard input | chat reads the questions there "
            '| give a file or, in bash, --image <(COMMAND), or ask with "foveate run"',
            code=2,
        )
    return read_once(source, allow_url=allow_url)


def _turn(chat: Chat, prompt: Prompt, arguments: dict[str, Any], timings: bool) -> None:
    stream = chat.stream(prompt, **arguments)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
        print(" [broken off]")
        return
    print(flush=True)
    if timings:
        options.say("\n".join(options.timing_lines(stream.answer)))


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of the standard input that are not empty, with surrounding blanks removed.

    Bytes that the terminal's encoding cannot decode become lone surrogates. File names keep their meaning
    that way; ``_text`` decodes or refuses such a question.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        except OSError as error:
            raise UserError(
                f"cannot read the standard input | {error} | give questions through a pipe or a terminal"
            ) from error
        if not line and not interactive:
            return
        if line := line.strip():
            yield line


def _text(line: str) -> str:
    """Return ``line``, decoded as UTF-8 if the terminal's encoding failed.

    Raise UserError if UTF-8 fails too.
    """
    try:
        line.encode()
        return line
    except UnicodeEncodeError:
        encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    try:
        return line.encode(encoding, "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        encodings = " or ".join(dict.fromkeys((encoding.upper(), "UTF-8")))
        raise UserError(
            f"the question is not valid text | its bytes are not {encodings} "
            "| set the terminal to UTF-8 and ask again"
        ) from error
