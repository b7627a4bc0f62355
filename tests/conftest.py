"""Shared fixtures: random checkpoints in Hugging Face's format, tiny bundles of every method; which tests share a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from foveate.export import methods
from foveate.export.build import build
from foveate.export.models import llava

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_SHARING = {"test_chain.py": "bundles of methods", "test_graphs.py": "bundles of methods"}


def pytest_collection_modifyitems(items):
    """Group tests for ``--dist loadgroup``: tests of a file run in one process, and files that trace the same graphs do, too."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_SHARING.get(item.path.name, str(item.path))))


@pytest.fixture(scope="session")
def method_bundle(tmp_path_factory) -> Callable[..., Path]:
    """A bundle of a tiny model of four layers, of every dialect, built when it is first asked for."""
    root, parts = (
        tmp_path_factory.mktemp("bundles"),
        llava.tiny(layers=4),
    )  # what methods share is traced once

    def get(method: str, precision: str = "fp16", **options: str) -> Path:
        name = ".".join([method, precision, *(f"{key}={value}" for key, value in options.items())])
        if not (root / name).exists():
            build(parts, methods.load(method, options), root / name, precision=precision)
        return root / name

    return get


@pytest.fixture(scope="session")
def save_checkpoint():
    return _save_checkpoint


PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def _save_checkpoint(
    path, *, heads=4, kv_heads=2, tied=False, feature_layer=-2, side=56, tiles=False, mistral=False, **_
):
    """A random checkpoint in Hugging Face's LLaVA format, with tokenizer, chat template and image processor; with ``tiles``
    in LLaVA-NeXT's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["USER: what is in the image ASSISTANT:"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, extra_special_tokens={"image_token": "<image>"}, **names
    )
    tokenizer.chat_template = TEMPLATE
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=14,
    )
    text = (MistralConfig if mistral else LlamaConfig)(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        **({"sliding_window": None} if mistral else {}),
    )
    config = (LlavaNextConfig if tiles else LlavaConfig)(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        vision_feature_layer=feature_layer,
        tie_word_embeddings=tied,
        **({"image_grid_pinpoints": PINPOINTS} if tiles else {}),
    )
    torch.manual_seed(heads * 10 + kv_heads)
    model = (LlavaNextForConditionalGeneration if tiles else LlavaForConditionalGeneration)(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(path)
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if tiles:
        image_processor = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=PINPOINTS)
    else:
        image_processor = CLIPImageProcessor(**sizes)
    processor = (LlavaNextProcessor if tiles else LlavaProcessor)(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.chat_template = TEMPLATE
    processor.save_pretrained(path)
    return model, processor
