"""Train `shapes`, the small checkpoint of the default demo, from scratch.

or, on two cores that others use too, `torchrun --nproc-per-node 2 scripts/train_shapes.py ...`.

Each stage continues from the one before. `--resume` continues a run that was stopped. The stages:

tower       CLIP on 160 of 576 patches, mostly of things: first what every patch shows, then captions too
tower-full  the same on all 576 patches
talk        projector and LLaMA on 2 x 2 averaged features of the frozen tower, first with few things
talk-full   the same on all 576 features, as the checkpoint is used
export      both checkpoints in fp16 with their processors, in Hugging Face's formats
evaluate    held-out accuracy per kind of question, asked one at a time through transformers
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.shapes.data import GRID, TowerBatches, TurnBatches
from training.shapes.model import accuracy, make_clip, make_llava, make_tokenizers, save
from training.shapes.stages import TowerLosses, device, fit, processes, rank, say, wait_for_all
from training.shapes.talk import Talker, replay


@dataclass(frozen=True)
class Stage:
    """Settings of a stage. `seed` is that of its first scene; no two stages share a scene."""

    steps: int
    lr: float
    batch: int
    seed: int
    after: str | None = None
    keep: int = GRID * GRID  # patches that the tower sees
    joint: int = 0  # step from which captions and grounded texts count
    pool: int = 1
    plan: tuple[tuple[int, tuple[int, int]], ...] = ()  # until this step: fewest and most things in an image


STAGES = {
    "tower": Stage(1150, 2e-3, 48, 10_000_000, keep=160, joint=500),
    "tower-full": Stage(300, 6e-4, 16, 30_000_000, after="tower"),
    "talk": Stage(
        1500, 2e-3, 24, 50_000_000, after="tower-full", pool=2, plan=((300, (1, 2)), (800, (1, 4)))
    ),
    "talk-full": Stage(900, 1e-3, 12, 150_000_000, after="talk"),
}
EVERYTHING = (*STAGES, "export", "evaluate")
MOST = (1, 6)
TURNS, SAVED_TURNS, REMEMBERED = 16, 48, 12_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/shapes"),
        help="Folder for states and tokenizers (default: build/shapes).",
    )
    parser.add_argument("--out", type=Path, help="Folder for the checkpoint (default: WORK/checkpoint).")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=EVERYTHING,
        default=EVERYTHING,
        metavar="STAGE",
        help="Stages to run (default: all).",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Continue from the states in WORK (default: start again)."
    )
    parser.add_argument(
        "--minutes", type=float, help="Save the state and stop after this many minutes (default: no limit)."
    )
    parser.add_argument(
        "--steps", type=int, help="Steps of every stage, for a trial (default: each stage's own)."
    )
    parser.add_argument("--batch", type=int, help="Images per step, for a trial (default: each stage's own).")
    parser.add_argument(
        "--questions",
        type=int,
        default=2000,
        help="Number of held-out questions to evaluate on (default: 2000).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of torch (default: 0).")
    parser.add_argument(
        "--workers", type=int, default=1, help="Number of processes that draw scenes (default: 1)."
    )
    parser.add_argument(
        "--no-compile",
        dest="compiled",
        action="store_false",
        help="Do not use torch.compile (default: use it).",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out = args.out or args.work / "checkpoint"
    args.deadline = time.time() + 60 * args.minutes if args.minutes else None
    args.work.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        torch.set_num_threads(1)
    if rank() == 0:
        make_tokenizers(args.work)
    wait_for_all()
    for name in args.stages:
        if name not in STAGES and rank() > 0:
            return
        torch.manual_seed(args.seed)
        if name == "export":
            export(args)
        elif name == "evaluate":
            report(args)
        elif not train(name, args):
            say(f"{name}: stopped in time, state saved; the same command with --resume goes on")
            return


def train(name: str, args: argparse.Namespace) -> bool:
    """Train one stage. Return False if time ran out before its end."""
    stage, state = STAGES[name], args.work / f"{name}.pt"
    steps, batch = args.steps or stage.steps, max(2, (args.batch or stage.batch) // processes())
    saved = torch.load(state, map_location="cpu") if args.resume and state.exists() else None
    done = saved["step"] if saved else 0
    if done >= steps:
        return True
    before = weights(args, stage.after) if stage.after else {}
    learn = learn_to_see if name.startswith("tower") else learn_to_talk
    module, batches, losses = learn(stage, args, batch, done, before)
    module.to(device())
    limits = {"steps": steps, "lr": stage.lr, "deadline": args.deadline}
    finished = fit(name, module, batches, losses, state=state, saved=saved, **limits)
    wait_for_all()  # the next stage reads what the first process wrote
    return finished


def learn_to_see(stage: Stage, args: argparse.Namespace, batch: int, done: int, before: dict[str, Tensor]):
    """Return module, batches and losses of a tower stage."""
    module = TowerLosses(make_clip(args.work), args.compiled)
    module.load_state_dict(before or module.state_dict())
    texts = args.work / "clip" / "tokenizer.json"
    data = TowerBatches(first_seed(stage, done), batch, texts, stage.keep, sign=0.8)
    return module, loader(data, args.workers), lambda rows, step: module(rows, joint=step >= stage.joint)


def learn_to_talk(stage: Stage, args: argparse.Namespace, batch: int, done: int, before: dict[str, Tensor]):
    """Return module, batches and losses of a language stage."""
    module = talker(args, stage, before)
    fresh = scenes_of(stage, done, batch // 2, args)
    sizes = {"batch": batch, "turns": TURNS, "capacity": REMEMBERED // processes()}
    batches = replay(fresh, module.features, seed=first_seed(stage, done), **sizes)
    return module, batches, lambda rows, step: module(rows)


def weights(args: argparse.Namespace, stage: str) -> dict[str, Tensor]:
    """Return the weights of a finished stage."""
    return torch.load(args.work / f"{stage}.pt", map_location="cpu")["module"]


def first_seed(stage: Stage, done: int) -> int:
    """Return the seed of this process's first scene. A step uses fewer than a thousand seeds."""
    return stage.seed + 1000 * done + 5_000_000 * rank()


def loader(data: IterableDataset, workers: int) -> DataLoader:
    return DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


def talker(args: argparse.Namespace, stage: Stage, before: dict[str, Tensor]) -> Talker:
    """Return LLaVA with the tower of a tower stage, or as a language stage left it."""
    clip = make_clip(args.work)
    if stage.after == "tower-full":
        clip.load_state_dict(clip_weights(before))
    prefix = Tokenizer.from_file(str(args.work / "tokenizer.json")).encode("USER: ").ids
    module = Talker(make_llava(args.work, clip), prefix, stage.pool, args.compiled)
    if stage.after != "tower-full":
        module.load_state_dict(before)
    return module


def clip_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("clip."): value for name, value in state.items() if name.startswith("clip.")}


def scenes_of(stage: Stage, done: int, batch: int, args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """Yield batches from step `done` on, with the number of things in the stage's plan."""
    for end, things in (*stage.plan, (None, MOST)):
        if end is not None and done >= end:
            continue
        words = args.work / "tokenizer.json"
        data = TurnBatches(first_seed(stage, done), batch, words, SAVED_TURNS, things=things, sign=0.6)
        for rows in loader(data, args.workers):
            yield rows
            done += 1
            if done == end:
                break


def export(args: argparse.Namespace) -> None:
    clip = make_clip(args.work)
    clip.load_state_dict(clip_weights(weights(args, "tower-full")))
    module = talker(args, STAGES["talk-full"], weights(args, "talk-full"))
    args.out.mkdir(parents=True, exist_ok=True)
    save(args.work, args.out, module.llava, clip)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"export  {args.out}  {size / 1e6:.2f} MB")


def report(args: argparse.Namespace) -> None:
    began = time.time()
    table = accuracy(args.out, args.questions)
    for kind, row in table.items():
        share = f"{row['accuracy']:6.1%}, commonest answer {row['chance']:.1%}"
        print(f"{kind:10s} {row['right']:5d} of {row['asked']:5d}  {share}")
    (args.out / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
    print(f"evaluate  {time.time() - began:.0f}s")
