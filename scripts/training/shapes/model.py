"""The parts of `shapes` before training: tokenizers, CLIP and LLaVA, all of transformers' own classes."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foveate.calib.scenes.questions import (
    CELLS,
    HELD_OUT,
    KINDS,
    SIDE,
    Question,
    Scene,
    ask,
    captions,
    make_scene,
    questions,
)

PROMPT = "USER: <image>\n{question} ASSISTANT:"
WORDS = 640  # the largest vocabulary; merges end earlier where the corpus has no more words


def corpus(seed: int = 0, scenes: int = 3000) -> Iterator[str]:
    """Yield texts of users and captions.

    Every cell name and number is frequent enough to become one token.
    """
    rng = np.random.default_rng(seed)
    for index in range(scenes):
        scene = make_scene(index)
        for question in questions(scene, rng, 8):
            yield PROMPT.format(question=question.text) + f" {question.answer}"
        yield captions(scene, rng)[0]
        yield " " + " ".join(CELLS) + " 0 1 2 3 4 5 6 7 8 9"


def train_tokenizer(lowercase: bool, specials: list[str], bos: str, eos: str | None) -> Tokenizer:
    """Train a byte-level BPE, so that any text has tokens.

    A word, with its leading space, is never split from its digits.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\s\w]+|\s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        min_frequency=20,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    single = f"{bos} $A {eos}" if eos else f"{bos} $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer


def make_tokenizers(folder: Path) -> None:
    """Write both tokenizers if they are missing.

    `tokenizer.json` is for prompts, `clip/tokenizer.json` for texts of the joint space.
    """
    if (folder / "clip" / "tokenizer.json").exists():
        return
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    train_tokenizer(False, ["<unk>", "<s>", "</s>", "<pad>", "<image>"], "<s>", None).save(
        str(folder / "tokenizer.json")
    )
    ends = ["<|startoftext|>", "<|endoftext|>"]
    train_tokenizer(True, ends, *ends).save(str(folder / "clip" / "tokenizer.json"))


def make_clip(folder: Path) -> CLIPModel:
    """Return a tiny CLIP with 24 x 24 patches, five vision layers and three text layers.

    Text is pooled at the first end token.
    """
    words = Tokenizer.from_file(str(folder / "clip" / "tokenizer.json"))
    begin, end = words.token_to_id("<|startoftext|>"), words.token_to_id("<|endoftext|>")
    shared = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_act": "gelu",
        "projection_dim": 128,
    }
    vision = shared | {"image_size": SIDE, "patch_size": 7, "num_hidden_layers": 5}
    text = shared | {
        "vocab_size": words.get_vocab_size(),
        "num_hidden_layers": 3,
        "max_position_embeddings": 77,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    config._attn_implementation = "eager"
    return CLIPModel(config)


def make_llava(
    folder: Path, clip: CLIPModel, *, hidden: int = 256, layers: int = 4, heads: int = 4
) -> LlavaForConditionalGeneration:
    """Return a small LLaVA-1.5: the vision encoder of `clip`, a two-layer projector, a LLaMA."""
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = {
        "model_type": "llama",
        "vocab_size": words.get_vocab_size(),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": words.token_to_id("<s>"),
        "eos_token_id": words.token_to_id("</s>"),
        "pad_token_id": words.token_to_id("<pad>"),
    }
    config = LlavaConfig(
        vision_config=clip.config.vision_config.to_dict(),
        text_config=text,
        image_token_index=words.token_to_id("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // 7) ** 2,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    return model


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save(words_of: Path, folder: Path, llava: LlavaForConditionalGeneration, clip: CLIPModel) -> None:
    """Write both checkpoints in fp16 with their processors, for AutoProcessor and from_pretrained."""
    shared = {"shortest_edge": SIDE}
    image = CLIPImageProcessorPil(size=shared, crop_size={"height": SIDE, "width": SIDE})
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(words_of / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    LlavaProcessor(
        image_processor=image,
        tokenizer=words,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    image.save_pretrained(folder)
    texts = PreTrainedTokenizerFast(
        tokenizer_file=str(words_of / "clip" / "tokenizer.json"),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=77,
        clean_up_tokenization_spaces=False,
    )
    CLIPProcessor(image_processor=image, tokenizer=texts).save_pretrained(folder / "clip")
    for model, place in ((llava, folder), (clip, folder / "clip")):
        copy.deepcopy(model).half().save_pretrained(place)
    published_names(folder)


def published_names(folder: Path) -> None:
    """Restore the published names of LLaVA-1.5 that transformers 5 changes.

    These are names in the vision encoder, and that of the tokenizer class.
    """
    weights = load_file(folder / "model.safetensors")
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model.")
        if ".vision_model." not in name
        else name: value
        for name, value in weights.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for place in (folder, folder / "clip"):
        settings = json.loads((place / "tokenizer_config.json").read_text())
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (place / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def accuracy(folder: Path, count: int, first: int = HELD_OUT) -> dict[str, dict[str, float]]:
    """Ask held-out questions one at a time, as users do.

    Return per kind: right, asked, accuracy, and the share of the most common answer.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    answers: dict[str, list[str]] = {kind: [] for kind in KINDS}
    right = dict.fromkeys(KINDS, 0)
    for asked, (scene, question) in enumerate(held_out(first)):
        if asked == count:
            break
        text = PROMPT.format(question=question.text)
        inputs = processor(images=scene.image, text=text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        said = processor.tokenizer.decode(output, skip_special_tokens=True).strip()
        answers[question.kind].append(question.answer)
        right[question.kind] += said == question.answer
    table = {}
    for kind, given in answers.items():
        commonest = max(map(given.count, given), default=0)
        share = {"accuracy": right[kind] / max(1, len(given)), "chance": commonest / max(1, len(given))}
        table[kind] = {"right": right[kind], "asked": len(given)} | {k: round(v, 4) for k, v in share.items()}
    return table


def held_out(first: int) -> Iterator[tuple[Scene, Question]]:
    """Yield scenes from seed `first` on, with one question of each kind that a scene has."""
    for seed in itertools.count(first):
        scene = make_scene(seed)
        rng = np.random.default_rng((seed, 2))
        for kind in KINDS:
            question = ask(scene, kind, rng)
            if question is not None:
                yield scene, question
