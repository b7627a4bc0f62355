"""The stages of training `shapes`: a training loop that can resume, and the losses of the vision stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from foveate.engines.disk.files import atomic_file
from training.shapes.data import LABELS


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside layers, and AdamW for everything else."""
    inner, outer = [], []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            (inner if weight.ndim == 2 and ".layers." in name else outer).append(weight)
    muon = torch.optim.Muon(inner, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]


def fit(
    name: str,
    module: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    losses: Callable[[dict[str, Tensor], int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    state: Path,
    saved: dict | None = None,
    deadline: float | None = None,
    every: int = 50,
) -> bool:
    """Train `module` until `steps`, saving to `state` regularly. Return False if `deadline` came first.

    `losses(batch, step)` returns named values. Those whose name begins with "loss" are summed, the others
    only reported.
    """
    opts, start, began = optimizers(module, lr), 0, time.time()
    if saved:
        module.load_state_dict(saved["module"])
        for opt, values in zip(opts, saved["optimizers"], strict=True):
            opt.load_state_dict(values)
        start, began = saved["step"], began - saved["seconds"]
    shown: dict[str, float] = {}
    for step, batch in zip(range(start, steps), batches, strict=False):
        schedule(opts, lr * min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))))
        with torch.autocast(device().type, torch.bfloat16):
            values = losses({key: value.to(device()) for key, value in batch.items()}, step)
        sum(value for key, value in values.items() if key.startswith("loss")).backward()
        average_gradients(module)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        for key, value in values.items():
            number = value.item()
            if not math.isnan(number):  # a batch without such a question has no accuracy
                shown[key] = 0.95 * shown.get(key, number) + 0.05 * number
        last = step + 1 == steps or time_is_up(deadline)
        if (step + 1) % every == 0 or last:
            line = "  ".join(f"{key} {value:.3f}" for key, value in shown.items())
            say(f"{name} {step + 1}/{steps}  {time.time() - began:.0f}s  {line}")
        if (step + 1) % 200 == 0 or last:
            write_state(state, module, opts, step + 1, time.time() - began)
        if last:
            return step + 1 == steps
    return True


def schedule(opts: list[torch.optim.Optimizer], rate: float) -> None:
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate


def write_state(
    state: Path, module: nn.Module, opts: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    if rank() == 0:
        saved = {"module": module.state_dict(), "optimizers": [opt.state_dict() for opt in opts]}
        with atomic_file(state) as part:
            torch.save(saved | {"step": step, "seconds": seconds}, part)


# Under torchrun every process trains on its own scenes, and gradients are averaged once a step. On two cores
# that others use too, two processes of one thread lose less time to waiting than one process of two threads.


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def time_is_up(deadline: float | None) -> bool:
    """Return True if the deadline has passed. The answer is the same in every process."""
    late = torch.tensor(float(deadline is not None and time.time() > deadline))
    if deadline is not None and distributed.is_initialized():
        distributed.all_reduce(late, distributed.ReduceOp.MAX)
    return bool(late)


def average_gradients(module: nn.Module) -> None:
    if distributed.is_initialized():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= processes()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise uint8 [B,H,W,3] like CLIP's processor, to [B,3,H,W]."""
    mean, std = (torch.tensor(v, device=pixels.device) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def run_layers(layers: Iterable[nn.Module], hidden: Tensor, mask: Tensor | None) -> list[Tensor]:
    states = [hidden]
    for layer in layers:
        states.append(layer(states[-1], mask))
    return states


class TowerLosses(nn.Module):
    """CLIP with the parts that only training needs.

    These are the heads of the dense loss, and scale and bias of the grounding loss. The losses are:

    loss_dense    labels of every kept patch, read from the features that LLaVA takes (hidden_states[-2])
    loss_clip     InfoNCE between captions and CLS of the last layer, and half as strongly of the layer before
    loss_ground   a text of the joint space is close to the patches it is about, and to no other
    """

    def __init__(self, clip: nn.Module, compiled: bool):
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(clip.config.vision_config.hidden_size, sum(map(len, LABELS.values())))
        self.ground = nn.Parameter(torch.tensor([2.3, -4.0]))  # log of the scale, bias
        self.run = torch.compile(run_layers) if compiled else run_layers

    def forward(self, batch: dict[str, Tensor], joint: bool) -> dict[str, Tensor]:
        vision = self.clip.vision_model
        hidden = vision.embeddings(normalise(batch["pixels"]))
        kept = batch["kept"][..., None].expand(-1, -1, hidden.shape[-1])
        hidden = vision.pre_layrnorm(torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, kept)], 1))
        states = self.run(vision.encoder.layers, hidden, None)
        values = self.dense(states[-2][:, 1:], batch["labels"])
        if not joint:
            return values
        captions = self.text(batch["caption"])
        scale = self.clip.logit_scale.exp().clamp(max=100)
        for weight, state in ((1.0, states[-1]), (0.5, states[-2])):
            logits = scale * self.image(state[:, 0]) @ captions.T
            right = torch.arange(len(logits), device=logits.device)
            both = F.cross_entropy(logits.float(), right) + F.cross_entropy(logits.float().T, right)
            values["loss_clip"] = values.get("loss_clip", 0) + 0.25 * weight * both
            values["clip@1"] = (logits.argmax(1) == right).float().mean()
        texts = self.text(batch["texts"].flatten(0, 1)).unflatten(0, batch["texts"].shape[:2])
        logits = self.ground[0].exp() * texts @ self.image(states[-2][:, 1:]).mT + self.ground[1]
        about = batch["grounded"]
        values["loss_ground"] = 2 * F.binary_cross_entropy_with_logits(logits.float(), about.float())
        values["ground"] = ((logits > 0) & about).sum() / ((logits > 0) | about).sum()
        return values

    def dense(self, patches: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the dense losses of patches [B,K,D] and labels [B,K,6].

        Accuracies are over the patches of things.
        """
        logits = self.head(patches).float().split([len(v) for v in LABELS.values()], -1)
        values: dict[str, Tensor] = {"loss_dense": 0}
        for (name, _), logit, label in zip(LABELS.items(), logits, labels.unbind(-1), strict=True):
            there = label > 0
            values["loss_dense"] = values["loss_dense"] + F.cross_entropy(
                logit.flatten(0, 1), label.flatten()
            )
            if name != "centre" and there.any():
                values["loss_dense"] = values["loss_dense"] + 0.5 * F.cross_entropy(
                    logit[there], label[there]
                )
            values[name] = (logit.argmax(-1) == label)[there].float().mean()
        return values

    def image(self, hidden: Tensor) -> Tensor:
        return F.normalize(self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden)), dim=-1)

    def text(self, ids: Tensor) -> Tensor:
        """Return text features [N,C] of ids [N,L], pooled at the first end token."""
        model = self.clip.text_model
        length = ids.shape[1]
        mask = torch.full((length, length), -1e4, device=ids.device).triu(1)[None, None]
        hidden = self.run(model.encoder.layers, model.embeddings(input_ids=ids), mask)[-1]
        end = (ids == self.clip.config.text_config.eos_token_id).int().argmax(1)
        pooled = model.final_layer_norm(hidden[torch.arange(len(ids), device=ids.device), end])
        return F.normalize(self.clip.text_projection(pooled), dim=-1)
