"""A random Qwen2.5-VL checkpoint for tests, written by transformers itself."""

from __future__ import annotations

from pathlib import Path

import torch
from qwen import SPECIAL
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from foveate.export.checkpoints.random_weights import byte_tokenizer

IMAGE_ID = 5
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 64,
    "initializer_range": 0.2,
}


def save_checkpoint(
    path: Path, *, tied: bool = False, noise: float = 0.0
) -> Qwen2_5_VLForConditionalGeneration:
    """Save a random checkpoint of Qwen2.5-VL's form, and return its model.

    Tokenizer, chat template and image processor are saved with it. ``noise`` is added to every parameter, so
    that biases and norms are not those of a fresh model.
    """
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"tie_word_embeddings": tied},
        vision_config=VISION,
        image_token_id=IMAGE_ID,
        video_token_id=6,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(3)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    for parameter in model.parameters() if noise else ():
        parameter.data.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(path)
    size = {"shortest_edge": 256, "longest_edge": 64 * 64}
    Qwen2VLImageProcessorPil(patch_size=4, size=size).save_pretrained(path)
    special = {name: number for number, name in enumerate(SPECIAL)}
    (path / "tokenizer.json").write_bytes(byte_tokenizer(320, special))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return model
