"""A checkpoint of each family."""

from __future__ import annotations

import pytest
import qwen_checkpoint


@pytest.fixture(params=["llava", "llava_next", "qwen2_5_vl"])
def checkpoint(request, tmp_path, save_checkpoint, llava_checkpoint):
    if request.param == "llava":
        return llava_checkpoint()[0], request.param
    if request.param == "llava_next":
        save_checkpoint(tmp_path / "checkpoint", tiles=True)
    else:
        qwen_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint", request.param
