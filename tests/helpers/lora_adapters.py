"""LoRA adapters that peft trains and saves, and the weights that are read with them."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.directory import Directory, Entry

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
EVERYWHERE = (
    ATTENTION + MLP + ["out_proj", "fc1", "fc2", "qkv", "proj", "mlp.0", "mlp.2", "linear_1", "linear_2"]
)


def refusal(path, **options) -> str:
    """Return the error of a checkpoint that cannot be loaded."""
    with pytest.raises(UserError) as error:
        models.load(str(path), **options)
    assert str(error.value).count(" | ") == 2
    return str(error.value)


def train(path, adapter, **options) -> torch.nn.Module:
    """Save a random adapter to the checkpoint in ``path`` as peft does, and return its unmerged model."""
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False} | options
    found = peft.get_peft_model(model, peft.LoraConfig(**options))
    for value in found.parameters():
        if value.requires_grad:  # magnitudes, biases and copies start as what they are in the base model
            value.data.mul_(1.1).add_(0.05 * torch.randn_like(value))
    found.save_pretrained(adapter)
    return found


def entries_of(path) -> dict[str, Entry]:
    """Return the tensors that the family asks its source for."""
    seen = {}

    class Spy(Directory):
        def weights(self, entries, unread=None):
            seen.update(entries)
            return super().weights(entries, unread)

    source = Spy(path)
    models.family(source.config["model_type"]).load(source)
    return seen


def rename(adapter, change) -> None:
    """Rename the tensors of an adapter."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({change(name): value for name, value in tensors.items()}, adapter / "adapter_model.safetensors")


def weights_of(path, adapter=None) -> dict[str, torch.Tensor]:
    """Return every tensor of the model as it is read."""
    weights = models.load(str(path), adapter=adapter and str(adapter)).weights
    return {name: weights.get(name) for name in entries_of(path)}


def equal(found, truth) -> bool:
    """Return True if all tensors of ``truth`` are the same in ``found``."""
    return all(torch.equal(found[name], truth[name]) for name in truth)
