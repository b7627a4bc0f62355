"""``foveate compile``: compile the graphs of a bundle for this machine (``runtime.compiling``)."""

from __future__ import annotations

import json
import sys
import time

from foveate.engines.targets import TARGETS
from foveate.runtime.cli import Parser, options
from foveate.runtime.compiling.compile import compile_bundle

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    args = _parser().parse_args(argv)
    start = time.perf_counter()
    folder = compile_bundle(
        args.bundle,
        args.target,
        options=options.compilation(args),
        dialect=args.dialect,
        force=args.force,
        self_test=not args.no_self_test,
        progress=options.say,
    )
    seconds, peak = round(time.perf_counter() - start, 3), _peak_memory()
    if args.json:
        print(json.dumps({"engine": str(folder), "seconds": seconds, "peak_bytes": peak}))
    else:
        if peak:
            print(f"peak memory {peak / 2**30:.2f} GiB", file=sys.stderr)
        print(f'{folder}\nnext: foveate run {args.bundle} "What is in the image?" --image FILE')
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="foveate compile", description="Compile a bundle's graphs into engines for this machine."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a bundle.")
    parser.add_argument(
        "--target",
        default="onnxruntime",
        help=f"Compile for this library: {', '.join(TARGETS)} (default: onnxruntime).",
    )
    parser.add_argument(
        "--dialect",
        help="Compile this form of the bundle's graphs; `foveate inspect` lists them "
        "(default: the best that the target takes).",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="Compile even if the engine is up to date (default: an engine that is up to date is kept).",
    )
    parser.add_argument(
        "--no-self-test",
        action="store_true",
        help="Do not replay the reference answers that the build recorded (default: replay them).",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON document (default: print text for people)."
    )
    options.add_compilation(parser)
    return parser


def _peak_memory() -> int | None:
    """Return the peak memory of the largest process that compiled a graph, in bytes, or None."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
