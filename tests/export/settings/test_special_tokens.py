"""BOS and EOS around prompts: ids equal those of transformers' processors, whoever puts them there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama import llama
from prompts import INTERLEAVED, expected, ids_of
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Directory
from foveate.export.checkpoints.random_weights import byte_tokenizer
from foveate.export.settings import special_tokens
from foveate.runtime.text.turns import IMAGE, Turn

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<pad>": 4}
TURN = (
    "{{ m['role'].upper() }}: " + INTERLEAVED + "{% if m['role'] == 'assistant' %}END{% else %} {% endif %}"
)
BODY = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
TEMPLATES = {
    "none": BODY.replace("END", ""),
    "none, eos behind answers": BODY.replace("END", "{{ eos_token }}"),
    "bos": "{{ bos_token }}" + BODY.replace("END", "</s>"),
    "bos by hand": "<s>" + BODY.replace("END", ""),
    "bos twice": "{{ bos_token }}<s>" + BODY.replace("END", ""),
    "bos and a blank": "{{ bos_token + ' ' }}" + BODY.replace("END", ""),
    "bos behind a blank": " {{ bos_token }}" + BODY.replace("END", ""),
}
AROUND = {"nothing": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>"}
TALKS = [
    [Turn("user", "What is it?")],
    [Turn("user", "What is it?", 2), Turn("assistant", "A cat."), Turn("user", parts=["Sure, ", IMAGE, "?"])],
    [Turn("system", "Be brief."), Turn("user", "What?", 1), Turn("assistant", "It."), Turn("user", "Why?")],
]


def tokenizer(kind: str, around: str) -> Tokenizer:
    made = (
        Tokenizer.from_str(byte_tokenizer(320, SPECIAL, begin="<s>").decode())
        if kind == "bytes"
        else llama(kind)
    )
    made.post_processor = processors.TemplateProcessing(
        single=AROUND[around], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", ["bytes", "first", "normalizer"])
def test_ids_around_prompts_equal_those_of_transformers(place, kind, around, template):
    ours, theirs = place(TEMPLATES[template], tokenizer(kind, around))
    for turns in TALKS:
        for generation in (True, False):
            assert ids_of(ours, turns, generation) == expected(theirs, turns, generation)


@pytest.mark.parametrize("template", ["none", "bos", "bos by hand"])
@pytest.mark.parametrize("around", ["nothing", "bos"])
@pytest.mark.parametrize(
    "changes",
    [
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"bos_token": None},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "special": True}},
        {"bos_token": "</s>"},
    ],
    ids=str,
)
def test_settings_of_the_config_count_as_in_transformers(place, around, template, changes):
    """A template that writes BOS, with no ``bos_token``, gets a second from the post-processor."""
    ours, theirs = place(TEMPLATES[template], tokenizer("bytes", around), **changes)
    for turns in TALKS:
        assert ids_of(ours, turns) == expected(theirs, turns)


def test_both_bos_where_transformers_makes_two(place):
    ours, _ = place(TEMPLATES["bos by hand"], tokenizer("bytes", "bos"), bos_token=None)
    assert ids_of(ours, TALKS[0])[:3] == [1, 1, ids_of(ours, TALKS[0])[2]]
    ours, _ = place(TEMPLATES["bos by hand"], tokenizer("bytes", "bos"), bos_token="<s>")
    assert ids_of(ours, TALKS[0]).count(1) == 1


def test_beginnings_that_differ_are_refused(place):
    template = "{% if messages[0]['role'] == 'system' %}{{ bos_token }}{% endif %}" + BODY
    with pytest.raises(UserError, match=r"beginning of its prompts is not supported.*in some prompts only"):
        place(template, tokenizer("bytes", "bos"))
    ours, theirs = place(template, tokenizer("bytes", "nothing"))
    for turns in TALKS:
        assert ids_of(ours, turns) == expected(theirs, turns)


@pytest.mark.parametrize("added", ["vocabulary", "added"])
def test_tokens_with_a_name_are_special_as_in_transformers(place, added):
    """``</s>`` has a name in tokenizer_config.json; tokenizer.json has it as a word like others."""
    made = json.loads(byte_tokenizer(320, SPECIAL, begin="<s>"))
    for token in list(made["added_tokens"]):
        if token["content"] == "</s>" and added == "vocabulary":
            made["added_tokens"].remove(token)
            made["model"]["vocab"]["</s>"] = token["id"]
        elif token["content"] == "</s>":
            token["special"] = False
    ours, theirs = place(TEMPLATES["none, eos behind answers"], Tokenizer.from_str(json.dumps(made)))
    for turns in TALKS:
        assert ids_of(ours, turns) == expected(theirs, turns)
    assert 2 in ids_of(ours, TALKS[1])
    typed = ours.encode_turns([Turn("user", "</s>")])
    assert 2 not in [i for run in typed for i in run.tolist()]


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>"])
@pytest.mark.parametrize(
    "sides", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}], ids=str
)
@pytest.mark.parametrize("kind", ["bytes", "first", "normalizer"])
def test_special_tokens_take_the_blanks_at_their_sides_as_in_transformers(place, kind, sides, token):
    made = json.loads(tokenizer(kind, "nothing").to_str())
    (entry,) = [each for each in made["added_tokens"] if each["content"] == token]
    entry |= sides
    ours, theirs = place(TEMPLATES["bos"], Tokenizer.from_str(json.dumps(made)))
    blanks = [
        Turn("user", parts=[" a \n", IMAGE, "\t\u3000b ", IMAGE]),
        Turn("assistant", " It. "),
        TALKS[0][0],
    ]
    for turns in [blanks, *TALKS]:
        assert ids_of(ours, turns) == expected(theirs, turns)


NAMES = {
    "strings": {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"},
    "objects and an old file": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": None},
    "extra": {"extra_special_tokens": {"image_token": "<image>", "boi_token": "<s>"}, "add_bos_token": True},
    "qwen": {"tokenizer_class": "Qwen2TokenizerFast", "bos_token": None},
}


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("decoder", [False, True])
def test_names_equal_those_of_transformers(tmp_path: Path, form, older, decoder):
    model = "qwen2_5_vl" if form == "qwen" else "llava"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    special = SPECIAL | {"<|endoftext|>": 5}
    (tmp_path / "tokenizer.json").write_bytes(byte_tokenizer(320, special, begin="<s>"))
    config = NAMES[form] | ({"added_tokens_decoder": {}} if decoder else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if older:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    theirs = AutoTokenizer.from_pretrained(tmp_path).special_tokens_map
    assert special_tokens.named(Directory(tmp_path)) == theirs
