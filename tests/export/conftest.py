"""Random checkpoints in Hugging Face's format, written by transformers: the oracle of the families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from prompts import NOW
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import chat_template_utils

from foveate.export.checkpoints.directory import Directory
from foveate.export.checkpoints.random_weights import byte_tokenizer
from foveate.export.settings import prompt
from foveate.runtime.text.chat_prompt import ChatTokenizer

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<pad>": 4}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}

MakeCheckpoint = Callable[..., tuple[Path, LlavaForConditionalGeneration]]


def randomize(model: torch.nn.Module) -> None:
    """Transformers starts biases at 0 and norms at 1, which would hide that one was forgotten or swapped."""
    for name, value in model.named_parameters():
        noise = torch.randn_like(value)
        value.data = (
            1 + 0.2 * noise if value.ndim == 1 and "norm" in name and "weight" in name else 0.2 * noise
        )


@pytest.fixture(scope="session")
def llava_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """``llava_checkpoint(kv_heads=4, tied=False, feature_layer=-2)``: directory, transformers' model.

    The model is in eval mode. Made once per set of options: do not change the directory.
    """
    made: dict[Any, tuple[Path, LlavaForConditionalGeneration]] = {}

    def make(kv_heads: int = 4, tied: bool = False, feature_layer: int = -2, **top: Any) -> Any:
        key = kv_heads, tied, feature_layer, *sorted(top.items())
        if key not in made:
            path = tmp_path_factory.mktemp("llava")
            text = {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": kv_heads,
                "vocab_size": 320,
                "max_position_embeddings": 256,
                "rope_theta": 5000.0,
                "tie_word_embeddings": tied,
            }
            config = LlavaConfig(
                vision_config={"model_type": "clip_vision_model", **VISION},
                text_config=text,
                image_token_index=SPECIAL["<image>"],
                pad_token_id=SPECIAL["<pad>"],
                vision_feature_layer=feature_layer,
                tie_word_embeddings=tied,
                **top,
            )
            config._attn_implementation = "eager"
            torch.manual_seed(len(made))
            model = LlavaForConditionalGeneration(config).eval()
            randomize(model)
            model.tie_weights()
            model.save_pretrained(path)
            save_processor(path)
            made[key] = path, model
        return made[key]

    return make


def save_processor(path: Path) -> None:
    (path / "tokenizer.json").write_bytes(byte_tokenizer(320, SPECIAL, begin="<s>"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), extra_special_tokens={"image_token": "<image>"}, **names
    )
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(path)


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, CLIPModel]]:
    """``clip_checkpoint(eos_token_id=2)``: directory, transformers' model.

    The tower has the size of ``llava_checkpoint``'s.
    """
    made: dict[int, tuple[Path, CLIPModel]] = {}

    def make(eos_token_id: int) -> tuple[Path, CLIPModel]:
        if eos_token_id not in made:
            path = tmp_path_factory.mktemp("clip")
            text = {
                "hidden_size": 48,
                "intermediate_size": 80,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": 300,
                "max_position_embeddings": 16,
                "eos_token_id": eos_token_id,
            }
            config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=40)
            torch.manual_seed(7)
            model = CLIPModel(config).eval()
            randomize(model)
            model.save_pretrained(path)
            special = {"<|startoftext|>": 298, "<|endoftext|>": 299}
            (path / "tokenizer.json").write_bytes(
                byte_tokenizer(300, special, begin="<|startoftext|>", end="<|endoftext|>")
            )
            made[eos_token_id] = path, model
        return made[eos_token_id]

    return make


@pytest.fixture
def copy(llava_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """The directory of a checkpoint, to be changed."""
    return shutil.copytree(llava_checkpoint()[0], tmp_path / "copy")


@pytest.fixture
def shards(llava_checkpoint: MakeCheckpoint, copy: Path) -> Path:
    """The same with its weights in several files."""
    (copy / "model.safetensors").unlink()
    llava_checkpoint()[1].save_pretrained(copy, max_shard_size="200KB")
    return copy


@pytest.fixture
def shard_pickled() -> Callable[[Path], None]:
    """``shard_pickled(path)`` turns a directory's weights into PyTorch archives, as transformers 4 saves."""

    def change(path: Path, files: int = 3) -> None:
        tensors = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        places = {}
        for number in range(files):
            name = f"pytorch_model-{number + 1:05}-of-{files:05}.bin"
            part = {key: tensors[key] for key in sorted(tensors)[number::files]}
            torch.save(part, path / name)
            places |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    return change


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """``edit_json(path, key=value)``: change a JSON file; None removes the key."""

    def edit(path: Path, **changes: Any) -> None:
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return edit


@pytest.fixture
def place(copy: Path, clock: None):
    """``place(template, tokenizer=None, **changes)``: our tokenizer, transformers' processor.

    ``changes`` are those of tokenizer_config.json.
    """

    def make(template: str | None, tokenizer: Tokenizer | None = None, **changes: Any):
        if template is not None:
            (copy / "chat_template.jinja").write_text(template)
        if tokenizer is not None:
            tokenizer.save(str(copy / "tokenizer.json"))
        config = copy / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        theirs = AutoProcessor.from_pretrained(copy)
        raw = prompt.tokenizer_json(Directory(copy))
        (copy / "bundled.json").write_bytes(raw)
        number = theirs.tokenizer.convert_tokens_to_ids("<image>")
        settings = prompt.prompt_settings(Directory(copy), raw, number, [2], None)
        json.dumps(settings)  # as it goes into the bundle
        return ChatTokenizer(copy / "bundled.json", settings), theirs

    return make


@pytest.fixture
def clock(monkeypatch):
    """Transformers' date is ``NOW``."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*NOW.timetuple()[:6])

    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
