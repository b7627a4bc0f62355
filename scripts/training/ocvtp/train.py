"""Train OC-VTP's pruner for a vision encoder with the published recipe. The model itself is not changed.

First the encoder's features of every image are written to WORK/features.npy. Then the pruner and a decoder
learn to rebuild them from slots. Defaults are the published numbers. The same command continues a run that
was stopped. OUT gets ocvtp.safetensors, which `foveate build --method ocvtp` finds beside a checkpoint,
ocvtp_decoder.safetensors, and ocvtp.json with the results.

Differences from the published code:

* Its validation runs on the last training batch, once per batch of held-out images, and shows the decoder
  every token. Here it runs on the held-out images, of which the decoder sees the same 24 tokens every time.
* Its measure is the training loss, which weighs tokens by the slots and so rises while slots specialise and
  rebuild better. Here the plain error decides on the best epoch and the patience.
* Its learning rate is set once per epoch. Here the same curve is followed step by step.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from training.ocvtp.decoder import SEEN
from training.ocvtp.features import collect
from training.ocvtp.trainer import Training


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        default="scripts/shapes",
        help="Name, hub id or folder, as in foveate build (default: scripts/shapes).",
    )
    add(
        "--images",
        type=Path,
        help="Folder of images, with subfolders (default: synthetic scenes).",
    )
    add("--pictures", dest="images", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # old name
    add(
        "--count",
        type=int,
        default=2000,
        help="Number of scenes, or most images of the folder (default: 2000).",
    )
    add(
        "--layer", type=int, help="Encoder layer to read (default: 8 of CLIP's 23, in proportion for others)."
    )
    add(
        "--side",
        type=int,
        help="Tokens per side of an image, for models of any image size such as Qwen2.5-VL (default: 24).",
    )
    add(
        "--work",
        type=Path,
        default=Path("build/ocvtp"),
        help="Folder for features and the training state (default: build/ocvtp).",
    )
    add("--out", type=Path, help="Folder for the trained pruner (default: WORK).")
    add(
        "--slots",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        help="Numbers of slots; each step draws one of them (default: 16 32 64 128).",
    )
    add("--epochs", type=int, default=30, help="Number of passes over all images (default: 30).")
    add("--warmup", type=int, default=4, help="Epochs in which the learning rate rises (default: 4).")
    add("--lr", type=float, default=1e-3, help="Largest learning rate (default: 0.001).")
    add("--warmup-lr", type=float, default=1e-6, help="Learning rate at the start (default: 1e-6).")
    add("--lr-min", type=float, default=1e-8, help="Learning rate at the end (default: 1e-8).")
    add("--batch", type=int, default=12, help="Number of images in a step (default: 12).")
    add("--clip", type=float, default=1.0, help="Largest norm of the gradient (default: 1).")
    add(
        "--train-share",
        type=float,
        default=0.95,
        help="Share of images to train on; the others validate (default: 0.95).",
    )
    add("--validation-slots", type=int, default=64, help="Number of slots in validation (default: 64).")
    add("--patience", type=int, default=5, help="Epochs without improvement before it stops (default: 5).")
    add("--seed", type=int, default=42, help="Seed of weights and draws (default: 42).")
    add("--decoder-layers", type=int, default=4, help="Number of layers of the decoder (default: 4).")
    add("--decoder-heads", type=int, default=4, help="Number of its attention heads (default: 4).")
    add(
        "--decoder-inner",
        type=int,
        help="Width of the decoder's feed-forward (default: 4 times the encoder's width).",
    )
    add(
        "--seen-share",
        type=float,
        default=0.5,
        help="Probability that the decoder sees a random number of tokens (default: 0.5).",
    )
    add("--seen", type=int, default=SEEN, help=f"Number of tokens that it sees otherwise (default: {SEEN}).")
    add(
        "--area-power",
        type=float,
        default=0.5,
        help="Power by which the loss weighs small slots more than large ones (default: 0.5).",
    )
    add("--area-cap", type=float, default=10.0, help="Largest weight of a slot in the loss (default: 10).")
    add(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="Dtype of the files in OUT (default: float32).",
    )
    add("--threads", type=int, help="Number of torch's threads (default: torch's own).")
    add("--minutes", type=float, help="Save the state and stop after this many minutes (default: no limit).")
    args = parser.parse_args(argv)
    args.out = args.out or args.work
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.deadline = math.inf if args.minutes is None else time.time() + 60 * args.minutes
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    features, grid = collect(
        args.model, args.images, args.count, args.layer, args.work, deadline=args.deadline, side=args.side
    )
    if features is None or not Training(args, features, grid).run():
        print("stopped in time, state saved; the same command goes on", flush=True)
