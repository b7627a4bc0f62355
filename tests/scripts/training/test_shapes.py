"""The checkpoint `shapes` loads in transformers and answers; its training starts, stops and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from foveate.calib.scenes.questions import HELD_OUT, KINDS, make_scene, questions
from training.shapes.data import TurnBatches, patch_owner
from training.shapes.model import PROMPT, accuracy
from training.shapes.talk import Talker

SCRIPTS = Path(__file__).parents[3] / "scripts"
SHAPES = SCRIPTS / "shapes"


@pytest.fixture(scope="module")
def llava():
    return transformers.LlavaForConditionalGeneration.from_pretrained(SHAPES, dtype=torch.float32).eval()


def test_it_is_small():
    """The decoder of ocvtp's training, which no model needs, is counted apart."""
    sizes = {path: path.stat().st_size for path in SHAPES.rglob("*") if path.is_file()}
    decoder = sizes.pop(SHAPES / "ocvtp_decoder.safetensors")
    assert sum(sizes.values()) <= 12e6 and decoder <= 1e6


def test_it_has_the_architecture_of_llava():
    config = transformers.AutoConfig.from_pretrained(SHAPES)
    assert (config.model_type, config.text_config.model_type) == ("llava", "llama")
    assert config.vision_config.model_type == "clip_vision_model"
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576


def test_any_text_has_tokens_and_answers_are_one():
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHAPES)
    text = "Où est le ★? 3 elephants\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    for answer in ("yes", "no", "red", "star", "6", "b2", "d4", "left", "below", "K"):
        assert len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) == 1, answer


def test_chat_template_is_the_prompt_it_was_trained_on():
    processor = transformers.AutoProcessor.from_pretrained(SHAPES)
    content = [{"type": "image"}, {"type": "text", "text": "Where is the star?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == PROMPT.format(question="Where is the star?")


def test_it_answers_easy_questions():
    """Right more often than guessing could be, on scenes it never saw; how often is in the model card."""
    table = accuracy(SHAPES, 70)
    right, asked = (sum(row[name] for row in table.values()) for name in ("right", "asked"))
    assert asked == 70 and right >= 49, table


def test_accuracy_is_recorded_for_every_kind():
    table = json.loads((SHAPES / "accuracy.json").read_text())
    assert set(table) == set(KINDS)
    assert sum(row["asked"] for row in table.values()) >= 1000
    card = (SHAPES / "README.md").read_text()
    assert all(f"| {kind} |" in card for kind in KINDS)


def test_packed_training_computes_what_transformers_computes(llava):
    """Many questions behind one image, with a block mask, give the logits of each asked alone."""
    scene = make_scene(HELD_OUT + 1)
    processor = transformers.AutoProcessor.from_pretrained(SHAPES)
    data = TurnBatches(HELD_OUT + 1, 1, SHAPES / "tokenizer.json", turns=4)
    data.open()
    row = {name: torch.tensor(v)[None] for name, v in data.row(scene, np.random.default_rng(0)).items()}
    own = transformers.LlavaForConditionalGeneration(llava.config).eval()
    own.load_state_dict(llava.state_dict())
    talker = Talker(own, processor.tokenizer("USER: ")["input_ids"], pool=1, compiled=False)
    with torch.no_grad():
        hidden = talker.hidden(talker.features(row["pixels"]), row["turns"])
        packed = own.lm_head(hidden)[0]
        for number, question in enumerate(questions(scene, np.random.default_rng(0), 4)):
            text = PROMPT.format(question=question.text)
            alone = llava(**processor(images=scene.image, text=text, return_tensors="pt")).logits[0, -1]
            first = (row["target"][0, number] >= 0).nonzero()[0, 0]
            assert torch.allclose(packed[number, first], alone, atol=2e-3), question


def test_joint_space_finds_what_a_question_is_about():
    """Patches of the thing asked about are closer to the question, pooled at the first end token."""
    clip = transformers.CLIPModel.from_pretrained(SHAPES / "clip", dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(SHAPES / "clip")
    image = transformers.AutoProcessor.from_pretrained(SHAPES).image_processor
    hits = asked = 0
    for seed in range(HELD_OUT, HELD_OUT + 12):
        scene = make_scene(seed)
        owner = torch.tensor(patch_owner(scene))
        pixels = image(images=scene.image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            hidden = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
            patches = clip.visual_projection(clip.vision_model.post_layernorm(hidden))
            for question in questions(scene, np.random.default_rng(seed), 7):
                about = [i + 1 for i, thing in enumerate(scene.things) if thing.box in question.boxes]
                mine = torch.isin(owner, torch.tensor(about))
                if question.kind in ("location", "colour", "shape", "read") and mine.any():
                    ids = words(question.text, return_tensors="pt", padding="max_length", max_length=77)
                    text = clip.text_projection(clip.text_model(ids["input_ids"]).pooler_output)
                    close = torch.cosine_similarity(patches, text, dim=-1)
                    hits += bool(close[mine].mean() > close[~mine].mean())
                    asked += 1
    assert asked >= 12 and hits >= 0.9 * asked


def test_training_runs_stops_and_goes_on(tmp_path):
    """Two steps of every stage on two images, then a third: nothing before it is trained again."""

    def train(steps: int, *more: str) -> str:
        command = [sys.executable, str(SCRIPTS / "train_shapes.py"), "--work", str(tmp_path), "--no-compile"]
        command += ["--steps", str(steps), "--batch", "2", "--workers", "0", "--questions", "2", *more]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny batches: more threads only wait for one another
        return subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout

    printed = train(2)
    for stage in ("tower", "tower-full", "talk", "talk-full"):
        assert f"{stage} 2/2" in printed
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    again = train(3, "--resume", "--stages", "tower", "talk-full")
    assert "tower 3/3" in again and "talk-full 3/3" in again and "1/3" not in again
    assert torch.load(tmp_path / "tower.pt")["step"] == 3
