"""A random LLaVA or LLaVA-NeXT checkpoint for tests, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def save(
    path: Path,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    feature_layer: int = -2,
    side: int = 56,
    tiles: bool = False,
    mistral: bool = False,
    **_: Any,
) -> tuple[Any, Any]:
    """Save a random checkpoint of LLaVA, or with ``tiles`` of LLaVA-NeXT; return model and processor.

    Tokenizer, chat template and image processor are saved with it.
    """
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
