"""The training of OC-VTP's pruner: steps, validation, and what is saved.

Its random numbers depend only on the seed and on the step, so a run that was stopped and goes on is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from foveate.engines.disk.files import atomic_file
from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.other_checkpoints import pruner_weights
from training.ocvtp.decoder import (
    Decoder,
    area_weighted_loss,
    draw_seen,
    load,
    reconstruction_errors,
    save_decoder,
    slot_share,
)


@dataclass
class Progress:
    """Progress of the training: its position and its losses."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    stale: int = 0  # epochs since the best
    losses: list[list[float]] = field(default_factory=list)  # per epoch: training, held out, held-out error
    summed: float = 0.0  # training losses of this epoch

    @property
    def epoch(self) -> int:
        return len(self.losses)


class Training:
    """One training run on `features` [P,N,D] of a vision encoder whose tokens form `grid`."""

    def __init__(self, args: argparse.Namespace, features: np.ndarray, grid: tuple[int, int]) -> None:
        self.args, self.features, self.grid = args, features, grid
        torch.manual_seed(args.seed)
        _, tokens, width = features.shape
        sizes = {"layers": args.decoder_layers, "heads": args.decoder_heads, "inner": args.decoder_inner}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pruner, self.decoder = SlotPruner(width).reset(), Decoder(width, tokens, **sizes)
        self.both = nn.ModuleList([self.pruner, self.decoder]).to(self.device)
        self.optimizer = torch.optim.AdamW(self.both.parameters(), lr=args.lr)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(args.seed)).numpy()
        train = int(args.train_share * len(features))
        self.train, self.held_out = order[:train], np.sort(order[train:])
        self.per_epoch = math.ceil(train / args.batch)
        self.progress = Progress()
        self.state = args.work / "state.pt"

    def run(self) -> bool:
        """Train to the end and write the files to OUT. Return False if time ran out before."""
        self.resume()
        began = time.time() - self.progress.seconds
        while self.progress.epoch < self.args.epochs and self.progress.stale < self.args.patience:
            while self.progress.step < (self.progress.epoch + 1) * self.per_epoch:
                if time.time() > self.args.deadline:
                    self.save_state()
                    return False
                self.step()
                self.progress.seconds = time.time() - began
                if self.progress.step % 500 == 0:
                    self.save_state()
            self.end_epoch()
        self.report()
        return True

    def step(self) -> None:
        """Train one step.

        Its random numbers depend only on seed and step number, so a resumed run is the same.
        """
        args, step = self.args, self.progress.step
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((args.seed, epoch)).permutation(self.train)
        features = self.batch(order[place * args.batch : (place + 1) * args.batch])
        torch.manual_seed((args.seed << 32) + step)
        count = args.slots[int(torch.randint(len(args.slots), ()))]
        seen = draw_seen(*features.shape[:2], share=args.seen_share, few=args.seen)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step / self.per_epoch, args)
        self.both.train()
        told, attention = self.rebuild(features, count, seen)
        loss = self.loss(told, features, attention)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.both.parameters(), args.clip)
        self.optimizer.step()
        self.progress.summed += loss.item()
        self.progress.step += 1
        if self.progress.step % 20 == 0:
            where = f"epoch {epoch + 1}/{args.epochs}  step {place + 1}/{self.per_epoch}"
            print(f"{where}  {self.progress.seconds:.0f}s  loss {loss.item():.4f}", flush=True)

    def batch(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(self.features[np.sort(images)].astype(np.float32)).to(self.device)

    def rebuild(self, features: Tensor, count: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's prediction of all tokens, and the attention of `count` slots."""
        noise = torch.randn(len(features), count, self.pruner.slot_width).to(self.device)
        slots, attention = self.pruner.attend(features, noise)
        return self.decoder(features, slots, seen.to(self.device)), attention

    def loss(self, told: Tensor, features: Tensor, attention: Tensor) -> Tensor:
        return area_weighted_loss(
            told, features, attention, power=self.args.area_power, cap=self.args.area_cap
        )

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return loss and mean squared error on the held-out images.

        Noise and seen tokens are the same every time.
        """
        self.both.eval()
        torch.manual_seed(self.args.seed)
        total = np.zeros(2)
        for start in range(0, len(self.held_out), self.args.batch):
            features = self.batch(self.held_out[start : start + self.args.batch])
            seen = draw_seen(*features.shape[:2], share=0.0, few=self.args.seen)
            told, attention = self.rebuild(features, self.args.validation_slots, seen)
            error = (told - features).square().mean().item()
            total += len(features) * np.array([self.loss(told, features, attention).item(), error])
        loss, error = total / len(self.held_out)
        return float(loss), float(error)

    def end_epoch(self) -> None:
        progress = self.progress
        trained, (tried, error) = progress.summed / self.per_epoch, self.validate()
        progress.losses.append([trained, tried, error])
        progress.summed, better = 0.0, error < progress.best
        progress.best, progress.stale = (error, 0) if better else (progress.best, progress.stale + 1)
        print(
            f"epoch {progress.epoch}/{self.args.epochs}  {progress.seconds:.0f}s  loss {trained:.4f}  "
            f"held out {tried:.4f}, error {error:.4f}{'  best' if better else ''}",
            flush=True,
        )
        if better:
            self.save_best()
        self.save_state()

    def save_best(self) -> None:
        recipe = {
            name: str(value)
            for name, value in vars(self.args).items()
            if name not in ("work", "out", "images", "threads", "minutes", "deadline")
        }
        recipe |= {"epoch": str(self.progress.epoch), "held_out_error": f"{self.progress.best:.6f}"}
        dtype = getattr(torch, self.args.dtype)
        pruner_weights.save(self.pruner, self.args.out / "ocvtp.safetensors", dtype, recipe)
        save_decoder(self.decoder, self.args.out / "ocvtp_decoder.safetensors", dtype)

    def save_state(self) -> None:
        saved = {"both": self.both.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_file(self.state) as part:
            torch.save(saved | {"progress": vars(self.progress)}, part)

    def resume(self) -> None:
        if self.state.exists():
            saved = torch.load(self.state, map_location=self.device, weights_only=True)
            self.both.load_state_dict(saved["both"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.progress = Progress(**saved["progress"])

    def report(self) -> None:
        """Print and write to OUT/ocvtp.json the results of the best pruner on the held-out images."""
        pruner, decoder = load(self.args.out)
        features = torch.from_numpy(self.features[self.held_out[:64]].astype(np.float32))
        budgets = [count for count in (32, 64, 128, 192) if count < features.shape[1]]
        table = {
            count: {
                name: round(value, 4)
                for name, value in measure(pruner, decoder, features, count, self.grid).items()
            }
            for count in budgets
        }
        for count, row in table.items():
            print(f"{count:4d}  " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()))
        summary = {"images": len(self.features), "steps": self.progress.step, "by_budget": table}
        summary |= {"seconds": round(self.progress.seconds), "losses": self.progress.losses}
        (self.args.out / "ocvtp.json").write_text(json.dumps(summary, indent=2) + "\n")


def measure(
    pruner: SlotPruner, decoder: Decoder, features: Tensor, count: int, grid: tuple[int, int]
) -> dict[str, float]:
    """Return `reconstruction_errors` and `slot_share` at one budget."""
    errors = reconstruction_errors(pruner, decoder, features, count, grid=grid)
    return errors | {"slot_share": slot_share(pruner, features, count)}


def learning_rate(epoch: float, args: argparse.Namespace) -> float:
    """Return the learning rate: linear over the warm-up, then a half cosine.

    The cosine spans all epochs; its part during the warm-up is left out.
    """
    if epoch < args.warmup:
        return args.warmup_lr + (args.lr - args.warmup_lr) * epoch / args.warmup
    return args.lr_min + (args.lr - args.lr_min) * (1 + math.cos(math.pi * epoch / args.epochs)) / 2
