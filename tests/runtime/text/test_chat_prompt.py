"""Token ids equal those of transformers with its chat templates; streamed text equals decoded text."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from llama import CORPUS, llama
from qwen import SPECIAL
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from foveate.engines.errors import UserError
from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot, clip_segments, load_tokenizer
from foveate.runtime.text.turns import IMAGE, Turn

TEXTS = [
    "What is left of the bus?",
    "",
    " ",
    "  two blanks before and after  ",
    "line one\nline two\n\n\ttabbed",
    "Ünïcödé: Straße, 你好世界, 👩🏽‍🚀 é, ﬁ, \uff21, \u200b|",
    "x" * 300,
    "a question 한국어?",
    "1234567890 + 3.14e-5 = ?!",
]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = {
    "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},
    "image": "<image>\n",
    "order": "images first",
    "after_text": " ",
    "generation": "ASSISTANT:",
    "image_token": "<image>",
}
QWEN = {
    "before": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "roles": {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "order": "given",
    "end": "<|im_end|>\n",
    "generation": "<|im_start|>assistant\n",
    "image_token": "<|image_pad|>",
}


def byte_level() -> Tokenizer:
    """A tokenizer like Qwen's: byte-level BPE, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return tokenizer


CLOSED = LLAVA | {"closing": {"assistant": "</s>"}}
CLOSED_TEMPLATE = LLAVA_TEMPLATE.replace(
    "{{ content['text'] + ' '}}",
    "{{ content['text'] }}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% else %}{{ ' ' }}{% endif %}",
)

KINDS = {
    "llama": (lambda: llama("normalizer"), LLAVA, LLAVA_TEMPLATE, "<s>", "</s>"),
    "llama-first": (lambda: llama("first"), LLAVA, LLAVA_TEMPLATE, "<s>", "</s>"),
    "llama-always": (lambda: llama("always"), LLAVA, LLAVA_TEMPLATE, "<s>", "</s>"),
    "llama-closed": (lambda: llama("normalizer"), CLOSED, CLOSED_TEMPLATE, "<s>", "</s>"),
    "llama-first-closed": (lambda: llama("first"), CLOSED, CLOSED_TEMPLATE, "<s>", "</s>"),
    "byte-level": (byte_level, QWEN, QWEN_TEMPLATE, None, "<|im_end|>"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    """(ours, Hugging Face's) of the same file."""
    make, settings, template, bos, eos = KINDS[request.param]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make().save(str(path))
    names = {"bos_token": bos} if bos else {}
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=eos, chat_template=template, **names)
    settings = settings | {
        "image_token_id": theirs.convert_tokens_to_ids(settings["image_token"]),
        "bos_id": theirs.bos_token_id,
        "stop_ids": [theirs.eos_token_id],
        "pad_id": None,
    }
    return ChatTokenizer(path, settings), theirs


def flat(ours: ChatTokenizer, turns: list[Turn], **options: bool) -> list[int]:
    """Our segments with one image token per image."""
    ids: list[int] = []
    for segment in ours.encode_turns(turns, **options):
        slot = isinstance(segment, ImageSlot)
        assert slot or (segment.dtype == np.int64 and len(segment))
        ids += [ours.settings["image_token_id"]] if slot else segment.tolist()
    return ids


def expected(theirs, turns: list[Turn], generation: bool = True) -> list[int]:
    messages = []
    for turn in turns:
        content = [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts
        ]
        messages.append({"role": turn.role, "content": content})
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    return theirs(text).input_ids  # as a processor does: BOS comes from the tokenizer, not from the template


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("images", [0, 1, 3])
def test_single_turn(pair, text, images):
    ours, theirs = pair
    turns = [Turn("user", text, images)]
    assert flat(ours, turns) == expected(theirs, turns)


def test_conversations(pair):
    ours, theirs = pair
    rng = random.Random(7)
    for _ in range(40):
        turns = [Turn("system", rng.choice(TEXTS))] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 4)):
            turns.append(Turn("user", rng.choice([*TEXTS, None]), rng.choice([0, 0, 1, 2])))
            turns.append(Turn("assistant", rng.choice(TEXTS)))
        generation = rng.random() < 0.5
        turns = turns[:-1] if generation else turns
        assert flat(ours, turns, generation=generation) == expected(theirs, turns, generation)


def test_images_between_words(pair):
    ours, theirs = pair
    rng = random.Random(9)
    for _ in range(40):
        parts = [rng.choice([IMAGE, IMAGE, *TEXTS]) for _ in range(rng.randint(1, 6))]
        turns = [Turn("user", parts=parts), Turn("assistant", "yes"), Turn("user", parts=parts[::-1])]
        assert flat(ours, turns) == expected(theirs, turns)
        slots = [s.index for s in ours.encode_turns(turns) if isinstance(s, ImageSlot)]
        assert slots == list(range(2 * turns[0].images))


def test_images_are_counted_through_the_conversation(pair):
    ours, _ = pair
    turns = [Turn("user", "a", 2), Turn("assistant", "b"), Turn("user", "c", 1)]
    slots = [s.index for s in ours.encode_turns(turns) if isinstance(s, ImageSlot)]
    assert slots == [0, 1, 2]


def test_a_longer_conversation_starts_with_the_shorter_one(pair):
    ours, _ = pair
    first = [Turn("user", "Where is the star?", 1)]
    more = [*first, Turn("assistant", "left"), Turn("user", "How many circles?")]
    start, whole = flat(ours, first), flat(ours, more)
    assert whole[: len(start)] == start


@pytest.mark.parametrize("name", ["<image>", "</s>", "<s>", "<|im_end|>", "<|image_pad|>"])
def test_user_text_never_becomes_a_special_token(pair, name):
    ours, theirs = pair
    special = set(theirs.get_added_vocab().values())
    segments = ours.encode_turns([Turn("user", f"what does {name} mean? {name}", 1)])
    clean = ours.encode_turns([Turn("user", "what does it mean?", 1)])
    count = [
        sum(int(i) in special for s in run if isinstance(s, np.ndarray) for i in s)
        for run in (segments, clean)
    ]
    assert count[0] == count[1]
    assert sum(isinstance(s, ImageSlot) for s in segments) == 1
    assert special.isdisjoint(ours.encode_text(name).tolist())
    assert ours.decode(ours.encode_text(f"say {name} twice")) == f"say {name} twice"


def test_encode_text_is_the_text_alone(pair):
    ours, theirs = pair
    for text in TEXTS:
        assert ours.encode_text(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode_text("").shape == (0,)


def test_decode_equals_theirs(pair):
    ours, theirs = pair
    for text in TEXTS:
        ids = [*theirs(text).input_ids, theirs.eos_token_id]
        assert ours.decode(np.array(ids)) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        kept = ours.decode(np.array(ids), keep_special=True)
        assert kept == theirs.decode(ids, clean_up_tokenization_spaces=False) and theirs.eos_token in kept


def test_streamed_text_equals_decoded_text(pair):
    ours, theirs = pair
    rng = random.Random(3)
    long = " ".join(rng.choice(TEXTS) for _ in range(60))
    vocabulary = len(theirs)
    noise = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 60))] for _ in range(300)]
    for ids in [*(theirs(text).input_ids for text in [*TEXTS, long]), *noise]:
        stream = ours.detokenizer()
        pieces = [stream.step(i) for i in ids]
        assert "".join([*pieces, stream.finish()]) == ours.decode(ids)
        stream = ours.detokenizer(keep_special=True)
        pieces = [stream.step(i) for i in ids]
        assert "".join([*pieces, stream.finish()]) == ours.decode(ids, keep_special=True)


def test_streaming_holds_back_only_what_is_open(pair):
    ours, _ = pair
    stream = ours.detokenizer()
    seen = ""
    for token in ours.encode_text("There are 4 circles"):
        seen += stream.step(token)
        assert seen == ours.decode(ours.encode_text("There are 4 circles"))[: len(seen)]
    assert seen == "There are 4 circles"  # plain words wait for nothing
    assert stream.finish() == ""


def test_the_stream_window_stays_small(pair):
    ours, _ = pair
    stream = ours.detokenizer()
    for token in ours.encode_text("the quick brown fox " * 50).tolist():
        stream.step(token)
        assert len(stream._ids) <= 16


def test_auto_tokenizer_of_a_llama_directory_agrees(tmp_path):
    """Return what AutoTokenizer makes of a LLaMA directory (it rebuilds the prefix rule from ``legacy``)."""
    for legacy, prefix in ((False, "first"), (True, "always")):
        folder = tmp_path / prefix
        folder.mkdir()
        llama(prefix).save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": legacy,
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": LLAVA_TEMPLATE}))
        theirs = AutoTokenizer.from_pretrained(folder)
        number = theirs.convert_tokens_to_ids("<image>")
        ours = ChatTokenizer(
            folder / "tokenizer.json",
            LLAVA | {"image_token_id": number, "bos_id": 1, "stop_ids": [2], "pad_id": None},
        )
        for text in TEXTS:
            turns = [Turn("user", text, 1), Turn("assistant", "yes"), Turn("user", "why?")]
            assert flat(ours, turns) == expected(theirs, turns)


def clip_vocabulary(folder) -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"{c}</w>" for c in alphabet), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={n: i for i, n in enumerate(names)}, merges=[("t", "h"), ("th", "e</w>")])
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_clip_segments_equal_clip_tokenizer(tmp_path):
    theirs = clip_vocabulary(tmp_path)
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    for text in ("the star", "The  Größe\n是 of 12 things!", "a" * 75):
        want = theirs(text, padding="max_length", max_length=77).input_ids
        assert clip_segments(text, ours).tolist() == [want]


def test_long_clip_text_is_split_and_complete(tmp_path):
    theirs = clip_vocabulary(tmp_path)
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    text = "left of the red star " * 20
    ids = theirs(text, add_special_tokens=False).input_ids
    rows = clip_segments(text, ours)
    assert rows.dtype == np.int64 and rows.shape == (-(-len(ids) // 75), 77)
    bos, eos = theirs.bos_token_id, theirs.eos_token_id
    assert (rows[:, 0] == bos).all() and (rows[:, -1] == eos).all()
    assert [i for row in rows for i in row[1:] if i != eos] == ids
    assert clip_segments("", ours).shape == (0, 77)
    injected = clip_segments("<|endoftext|> star", ours)
    assert (injected[0] == eos).argmax() > len("<|endoftext|>")


def test_faults_are_explained(tmp_path, pair):
    ours, _ = pair
    with pytest.raises(UserError, match="tokenizer is missing"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text('{"model": ')
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "broken.json")
    with pytest.raises(UserError, match="did you mean user"):
        ours.encode_turns([Turn("users", "hello")])
    with pytest.raises(UserError, match="not valid Unicode"):
        ours.encode_text("caf\udce9")
