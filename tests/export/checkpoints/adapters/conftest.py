"""A base model for each case, and an adapter to it."""

from __future__ import annotations

import pytest
import qwen_checkpoint
from lora_adapters import ATTENTION, train


@pytest.fixture(scope="session")
def base(tmp_path_factory, llava_checkpoint):
    """``base(family)``: directory of a checkpoint."""
    made = {"llava": llava_checkpoint()[0], "llava, tied": llava_checkpoint(tied=True)[0]}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("qwen")
            qwen_checkpoint.save_checkpoint(made[family])
        return made[family]

    return get


@pytest.fixture
def adapter(base, tmp_path):
    """Train an adapter to the LLaVA checkpoint, and return its folder."""
    options = {"target_modules": [*ATTENTION, "lm_head", "fc1", "linear_1"]}
    train(base("llava"), tmp_path / "adapter", **options)
    return tmp_path / "adapter"
