"""A LoRA adapter, merged, exported and run, gives the answers of transformers with peft."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from PIL import Image

from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

WORDS = 12


@pytest.mark.filterwarnings("ignore")
def test_greedy_tokens_with_an_adapter(tmp_path, save_checkpoint):
    model, processor = save_checkpoint(tmp_path / "base", kv_heads=2)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8))
    before = transformers_tokens(model, processor, image)
    torch.manual_seed(4)
    model.name_or_path = str(tmp_path / "base")
    options = {"target_modules": ["q_proj", "v_proj", "down_proj", "fc1", "linear_2"], "use_dora": True}
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **options)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    expected = transformers_tokens(adapted.eval(), processor, image)
    assert expected != before

    parts = models.load(str(tmp_path / "adapter"))
    build(parts, methods.load("none"), tmp_path / "bundle", precision="fp32", dialects=["ort"])
    compile_bundle(tmp_path / "bundle")
    pipe = Pipeline.load(tmp_path / "bundle")
    assert pipe.bundle.manifest.source.adapter == str(tmp_path / "adapter")
    answer = pipe.generate([image], "what is in the image?", max_new_tokens=WORDS)
    assert answer.tokens == expected


def transformers_tokens(model, processor, image) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": "what is in the image?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(images=[image], text=prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=WORDS, do_sample=False, eos_token_id=None)
    return out[0, batch["input_ids"].shape[1] :].tolist()
