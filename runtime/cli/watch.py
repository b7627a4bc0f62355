"""``foveate watch``: ask one question about a camera's newest frame, again and again, until stopped.

Each answer is about the newest frame at its start. Frames that arrive during an answer are dropped. SIGINT or
SIGTERM stops an answer that is being generated and ends the program; a second signal kills it. A camera that
gives no frame at the start is an error; one that is lost later is opened again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foveate.engines.errors import UserError, install_extra
from foveate.runtime.cli import Parser, options
from foveate.runtime.cli.run import to_json
from foveate.runtime.cli.signals import handled_elsewhere
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.video.latest_frame import Frame, Reader, Source

__all__ = ["main", "stopped_by_signals", "watch"]

_TICK = 0.2  # seconds between checks of the stop event during a wait


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    args = _parser().parse_args(argv)
    if (args.camera is None) == (args.video is None):
        raise UserError("nothing to watch | expected --camera or --video | foveate watch --help", code=2)
    if args.every < 0:
        raise UserError(f"wrong every | got {args.every}, expected 0 or more seconds | leave it out", code=2)
    source = _video("camera", args.camera) if args.camera is not None else _video("file", args.video)
    with stopped_by_signals() as stop:
        pipe = Pipeline.load(args.bundle, args.engine, threads=args.threads, progress=options.say)
        arguments = options.generation(args)
        # report wrong arguments before the camera is opened
        pipe.stream(None, args.prompt, **arguments).close()
        watch(
            pipe, source, args.prompt, stop, arguments, every=args.every, count=args.count, as_json=args.json
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="foveate watch",
        description="Answer a question about the newest frame of a camera or video file, again and again.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    parser.add_argument(
        "--camera",
        metavar="CAMERA",
        help="Watch this camera: a number (0 is /dev/video0), a path or link in /dev, a serial number, or a "
        "stream address such as rtsp://... Either --camera or --video is required; there is no default.",
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="Watch this video file, played at its own speed. Either --camera or --video is required; "
        "there is no default.",
    )
    parser.add_argument(
        "--prompt",
        type=str,
        required=True,
        help="Ask this question about each frame. Required; there is no default.",
    )
    options.add_generation(parser)
    options.add_engine(parser)
    parser.add_argument(
        "--every",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="Leave at least this many seconds between the starts of two answers (default: 0, no pause).",
    )
    parser.add_argument(
        "--count", type=int, help="Stop after this many answers (default: go on until stopped)."
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON document per answer, each on its own line (default: print the text alone).",
    )
    return parser


def _video(kind: str, where: str) -> Source:
    try:
        return getattr(importlib.import_module("foveate.runtime.video.capture"), kind)(where)
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise UserError(
            f"`foveate watch` needs the video extra | OpenCV is not installed | {install_extra('video')}"
        ) from error


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets. The second signal has its usual effect."""
    stop = threading.Event()
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    for number in old:
        signal.signal(number, handle)
    try:
        with handled_elsewhere():
            yield stop
    finally:
        restore()


def watch(
    pipe: Pipeline,
    source: Source,
    prompt: str,
    stop: threading.Event,
    arguments: dict[str, Any],
    *,
    every: float = 0.0,
    count: int | None = None,
    as_json: bool = False,
) -> int:
    """Answer until ``stop`` is set, the file ends, or ``count`` answers are given. Return their number.

    Raises UserError if a camera gives no frame at the start.
    """
    answers, next_start = 0, 0.0
    with Reader(source, options.say) as reader:
        while not stop.is_set() and (count is None or answers < count):
            if (wait := next_start - time.monotonic()) > 0:
                stop.wait(min(wait, _TICK))
                continue
            if (frame := reader.take(_TICK)) is None:
                if reader.ended:
                    break
                continue
            next_start = time.monotonic() + every
            newer = reader.read - frame.number  # frames that arrived since this one was taken
            if not _answer(pipe, frame, newer, prompt, stop, arguments, as_json):
                break
            answers += 1
        options.say(f"{answers} answers, {reader.read} frames read")
    return answers


def _answer(
    pipe: Pipeline,
    frame: Frame,
    newer: int,
    prompt: str,
    stop: threading.Event,
    arguments: dict[str, Any],
    as_json: bool,
) -> bool:
    """Print the answer about one frame. Return False if ``stop`` broke it off."""
    age = frame.age
    if not as_json:
        print(f"[{time.strftime('%H:%M:%S')} frame {frame.number}] ", end="", flush=True)
    stream = pipe.stream(frame.pixels, prompt, **arguments)
    for piece in stream:
        if not as_json:
            print(piece, end="", flush=True)
        if stop.is_set():
            stream.close()
            print("" if as_json else " [broken off]", flush=True, end="" if as_json else "\n")
            return False
    if as_json:
        print(
            json.dumps(
                {"frame": frame.number, "newer": newer, "age": round(age, 4), **to_json(stream.answer)}
            ),
            flush=True,
        )
    else:
        print(flush=True)
    return True
