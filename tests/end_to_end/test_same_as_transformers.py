"""Tier 3: through exported graphs and the runtime, the same answers as transformers' own models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.clock import Clock
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.llm.prompt_items import prompt_items
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import Turn

NEW_TOKENS = 32
CHECKPOINTS = {
    "multi-head": {"heads": 4, "kv_heads": 4, "tied": False, "feature_layer": -2, "images": 1},
    "grouped-query": {"heads": 4, "kv_heads": 2, "tied": False, "feature_layer": -2, "images": 3},
    "tied embeddings": {"heads": 4, "kv_heads": 1, "tied": True, "feature_layer": -1, "images": 1},
    "early features": {"heads": 2, "kv_heads": 2, "tied": True, "feature_layer": -3, "images": 3},
    "layer by its number": {"heads": 2, "kv_heads": 1, "tied": False, "feature_layer": 2, "images": 1},
}


def hf_answer(model, processor, images, text):
    """Transformers' own greedy tokens and the logits that led to each."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(images=images, text=prompt, return_tensors="pt")
    model.generation_config.eos_token_id = None  # 32 tokens, whatever they are
    with torch.no_grad():
        out = model.generate(
            **batch,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences[0, batch["input_ids"].shape[1] :].tolist(), torch.cat(out.logits).numpy()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_same_logits_and_greedy_tokens(tmp_path, name, capsys, save_checkpoint):
    case = CHECKPOINTS[name]
    model, processor = save_checkpoint(tmp_path / "checkpoint", **case)
    pipe = built(tmp_path)
    rng = np.random.default_rng(3)
    images = [
        Image.fromarray(rng.integers(0, 256, (60 + 9 * i, 80, 3), np.uint8)) for i in range(case["images"])
    ]
    with capsys.disabled():
        print(*(f"\n{name}: {tie}" for tie in compare(pipe, model, processor, images)), end="")


def test_a_tower_whose_side_is_no_multiple_of_its_patch(tmp_path, capsys, save_checkpoint):
    """60 pixels in patches of 14: the rows and columns behind the fourth patch belong to none."""
    model, processor = save_checkpoint(tmp_path / "checkpoint", side=60)
    pipe = built(tmp_path)
    assert model.config.vision_config.image_size == 60 and pipe.manifest.num_visual_tokens == 16
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, size, np.uint8)) for size in ((60, 60, 3), (47, 90, 3))]
    with capsys.disabled():
        print(*(f"\n{tie}" for tie in compare(pipe, model, processor, images)), end="")


@pytest.mark.parametrize("decoder", [pytest.param("llama", marks=pytest.mark.slow), "mistral"])
def test_images_of_every_shape_in_tiles(tmp_path, decoder, capsys, save_checkpoint):
    model, processor = save_checkpoint(
        tmp_path / "checkpoint", kv_heads=2, tiles=True, mistral=decoder == "mistral"
    )
    pipe = built(tmp_path)
    rng = np.random.default_rng(4)
    shapes = {
        "square": [(112, 112)],
        "1:4": [(160, 40)],
        "4:1": [(40, 160)],
        "below a tile": [(31, 24)],
        "above all canvases": [(300, 421)],
        "odd": [(87, 131)],
        "a strip": [(8, 300)],
        "three": [(50, 90), (112, 56), (20, 20)],
    }
    for name, sizes in shapes.items():
        images = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
        with capsys.disabled():
            print(*(f"\n{name}: {tie}" for tie in compare(pipe, model, processor, images)), end="")


def built(root):
    build(
        models.load(str(root / "checkpoint")),
        methods.load("none"),
        root / "bundle",
        precision="fp32",
        dialects=["ort"],
    )
    compile_bundle(root / "bundle")
    return Pipeline.load(root / "bundle")


def compare(pipe, model, processor, images) -> list[str]:
    """Logits and greedy tokens of one prompt against transformers'; the near-ties."""
    text = "what is in the image, and où?"
    tokens, expected = hf_answer(model, processor, images, text)
    segments = pipe.tokenizer.encode_turns([Turn("user", text, len(images))])
    clock = Clock()
    shown = [
        pipe.vision.prune(pipe.vision.see(pipe.vision.open(image), clock), {}, 16, clock) for image in images
    ]
    decoder = pipe.decoder()
    logits = [decoder.prefill(prompt_items(segments, shown), NEW_TOKENS).logits]
    logits += [decoder.step(token) for token in tokens[:-1]]
    ours = np.stack([row.numpy() for row in logits])

    error = np.abs(ours - expected).max(axis=1)
    scale = np.abs(expected).max(axis=1)
    assert (error <= 1e-3 * scale).all(), f"largest error {error.max():.2e} of {scale.max():.2e}"
    ties = near_ties(ours, expected, error)
    stop_ids = pipe.tokenizer.stop_ids
    until_stop = next((step for step, token in enumerate(tokens) if token in stop_ids), NEW_TOKENS)
    answer = pipe.generate(images, text, max_new_tokens=NEW_TOKENS)
    assert ties or answer.tokens == tokens[:until_stop]
    return ties


def near_ties(ours: np.ndarray, expected: np.ndarray, error: np.ndarray) -> list[str]:
    """Steps where another token wins, each excused only when the two logits are closer than the error."""
    found = []
    for step, (mine, theirs) in enumerate(zip(ours.argmax(axis=1), expected.argmax(axis=1), strict=True)):
        gap = expected[step, theirs] - expected[step, mine]
        assert gap <= 2 * error[step], f"token {step}: {mine} for {theirs}, gap {gap:.2e}"
        if mine != theirs:
            found.append(f"near-tie at token {step}, {mine} for {theirs}, gap {gap:.2e}")
    return found
