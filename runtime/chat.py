"""``foveate chat``: a conversation about pictures, a line per turn, with one cache for all of it.

Ctrl-C breaks an answer off; that turn is forgotten. At the prompt it ends the program, as does the end of the input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime import options
from foveate.runtime.cli import Parser
from foveate.runtime.pipeline import Chat, Pipeline

__all__ = ["main"]

_HELP = (
    "/image FILE shows a picture with the next question, /reprune prunes again with it in view, /quit ends"
)


def main(argv: list[str]) -> int:
    parser = Parser(prog="foveate chat", description=f"Talk about pictures. {_HELP}.")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="shown with the first turn"
    )
    parser.add_argument("--system", help="what the conversation opens with")
    options.add_generation(parser)
    options.add_engine(parser)
    parser.add_argument(
        "--timings", action="store_true", help="print the tokens kept and the times, to stderr"
    )
    args = parser.parse_args(argv)
    generation = options.generation(args)
    pipe = Pipeline.load(args.bundle, args.engine, threads=args.threads, progress=options.say)
    chat, images, reprune, code = pipe.chat(args.system), list(args.image), False, 0
    interactive = sys.stdin.isatty()
    if interactive:
        options.say(_HELP)
    for line in _lines(interactive):
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/image":
            images.append(rest.strip())
        elif command == "/reprune":
            reprune = True
        elif command.startswith("/"):
            options.say(f"no such command: {command} ({_HELP})")
        else:
            try:
                _turn(chat, line, {"image": images, "reprune": reprune, **generation}, args.timings)
            except UserError as error:
                options.say(f"foveate: {error}")
                code = code if interactive else error.code
            images, reprune = [], False
    return code


def _turn(chat: Chat, text: str, arguments: dict[str, Any], timings: bool) -> None:
    stream = chat.stream(text, **arguments)
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
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line:
            yield line
