"""Time bundles from the image to the first token at several budgets, next to llama.cpp at the same sizes.

llama.cpp cannot prune. It gets random weights of the first bundle's sizes: the language model in Q4_0, and
LLaVA-1.5's vision encoder in float16. All read the same image and ``--text-tokens`` tokens of text, including
the chat template, and answer with one token. Every contender is a process of its own. They are measured in
turn, round by round. Prints medians with the fastest and slowest round; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.bundle.loading import load
from foveate.runtime.measuring.bench import environment, question
from foveate.runtime.pipeline import Pipeline
from speed.arguments import add_rounds
from speed.contenders import ask, start
from speed.rival_models import gguf_file, projector_file
from speed.tables import spread

LLAMA = "llama.cpp-q4_0"
_SIDES = 480, 640, 3


def ours(bundle: str, image: Image.Image, args: argparse.Namespace) -> Callable[[str], int]:
    pipe = Pipeline.load(bundle, threads=args.threads)
    text = question(pipe, args.text_tokens)

    def answer(keep: str) -> int:
        return pipe.generate(image, text, keep=keep, max_new_tokens=1).timings.prompt_rows

    return answer


def llama(image: Image.Image, args: argparse.Namespace) -> Callable[[str], int]:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Llava15ChatHandler

    sizes = asdict(load(args.bundles[0]).manifest.decoder)
    model = Llama(
        str(gguf_file(sizes, args.work)),
        chat_handler=Llava15ChatHandler(str(projector_file(sizes["hidden_size"], args.work)), verbose=False),
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=1024,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    packed = io.BytesIO()
    image.save(packed, "BMP")  # almost no time to decode
    url = "data:image/bmp;base64," + base64.b64encode(packed.getvalue()).decode()
    text = ""

    def answer(keep: str) -> int:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": " "}, {"role": "user", "content": content}]
        done = model.create_chat_completion(messages=messages, max_tokens=1, temperature=0)
        return done["usage"]["prompt_tokens"]

    imaged = 576
    while (rows := answer("all") - imaged) < args.text_tokens:  # every byte is one token of its vocabulary
        text += "?" * (args.text_tokens - rows)
    return answer


def serve(name: str, args: argparse.Namespace) -> None:
    """Run a contender's process: answer each budget on stdin with a line of JSON."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, _SIDES, np.uint8))
    answer = llama(image, args) if name == LLAMA else ours(name, image, args)
    print("{}", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        rows = answer(line.strip())
        print(json.dumps({"seconds": time.perf_counter() - begin, "rows": rows}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", help="Compiled bundles; the first one gives the sizes.")
    parser.add_argument("--keep", nargs="+", default=["64", "576"], help="Budgets (default: 64 576).")
    parser.add_argument("--text-tokens", type=int, default=40, help="Number of text tokens (default: 40).")
    add_rounds(parser)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.serve:
        serve(args.serve, args)
        return
    found = measure(args)
    print_table(found)
    print(json.dumps({"environment": environment(args.threads), "contenders": found}))


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return by contender and budget the tokens of the prompt, and the seconds of every round."""
    servers = {name: start(name) for name in [*args.bundles, LLAMA]}
    asked = [(name, keep) for name in args.bundles for keep in args.keep] + [(LLAMA, "all")]
    found: dict[str, dict[str, Any]] = {f"{Path(name).name}, {keep}": {"seconds": []} for name, keep in asked}
    try:
        for number in range(-1, args.rounds):  # the first round is the warm-up
            for (name, keep), row in zip(asked, found.values(), strict=True):
                answer = ask(servers[name], keep)
                print(f"round {number} {name} {keep} {answer}", file=sys.stderr, flush=True)
                row["rows"] = answer["rows"]
                if number >= 0:
                    row["seconds"].append(answer["seconds"])
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    return found


def print_table(found: dict[str, dict[str, Any]]) -> None:
    whole = statistics.median(found[f"{LLAMA}, all"]["seconds"])
    print(
        "| contender, visual tokens | tokens of the prompt | first token, s | llama.cpp takes times as long |"
    )
    print("|---|---|---|---|")
    for name, row in found.items():
        ratio = whole / statistics.median(row["seconds"])
        print(f"| {name} | {row['rows']} | {spread(row['seconds'], 2)} | {ratio:.2f} |")
