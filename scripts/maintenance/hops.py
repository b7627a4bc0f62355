"""Count the files that one question to a bundle goes through, and the calls from one file to another.

The question is asked twice, and the second time is counted, so that imports are not. A call counts as a hop
if the caller, the nearest one that is foveate's, is in another file. Prints the files; the last line has the
numbers.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from foveate.runtime import cli

__all__ = ["Counter", "main"]

ROOT = Path(__file__).resolve().parents[2]
TOP = ("export", "calib", "runtime", "engines", "jetson")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", help="Folder of a compiled bundle.")
    parser.add_argument("--image", default="docs/scene.png", help="Image to show (default: docs/scene.png).")
    parser.add_argument(
        "--prompt",
        default="What letter is on the sign?",
        help="Question to ask (default: What letter is on the sign?).",
    )
    args = parser.parse_args()
    question = ["run", args.bundle, args.prompt, "--image", args.image]
    counter = Counter(tuple(f"{ROOT / name}/" for name in TOP))
    if code := cli.main(question):
        return code
    sys.setprofile(counter)
    try:
        code = cli.main(question)
    finally:
        sys.setprofile(None)
    print("\n".join(sorted(str(Path(name).relative_to(ROOT)) for name in counter.files)))
    print(f"{len(counter.files)} files, {counter.hops} hops, {counter.calls} calls")
    return code


class Counter:
    """A function for ``sys.setprofile`` that counts calls into files below some folders."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self._folders = folders
        self.files: set[str] = set()
        self.hops = self.calls = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a class body is no call
            return
        file = frame.f_code.co_filename
        if not file.startswith(self._folders):
            return
        self.files.add(file)
        self.calls += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(self._folders):
            caller = caller.f_back
        self.hops += caller is not None and caller.f_code.co_filename != file
