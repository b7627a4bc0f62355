"""Tokens without a row in the embedding are refused at build by name; older bundles give no traceback."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.models import llava
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

ROWS = 320  # of the embedding; its tokenizer has as many tokens


def add(path, *tokens):
    """Tokens as in hiyouga/LlamaFactory#8803: added with transformers, and the model left as it was."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([AddedToken(token) for token in tokens])
    tokenizer.save_pretrained(path)


def test_words_beyond_the_embedding_are_refused_by_name(copy):
    add(copy, "zebra", "okapi")
    with pytest.raises(UserError, match=r"got 'zebra' \(320\), 'okapi' \(321\), expected numbers below 320"):
        models.load(str(copy))


def test_many_are_counted(copy):
    add(copy, *(f"word{number}" for number in range(9)))
    with pytest.raises(UserError, match=r"'word4' \(324\) and 4 more"):
        models.load(str(copy))


def add_special(path, *tokens):
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(list(tokens))
    tokenizer.save(str(path / "tokenizer.json"))


def test_a_special_token_that_nothing_feeds_does_no_harm(copy):
    expected = models.load(str(copy)).prompt
    add_special(copy, "[PAD]")
    assert models.load(str(copy)).prompt == expected


def test_a_special_token_of_the_chat_template_is_refused(copy):
    add_special(copy, "[PAD]", "<turn>")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("'ASSISTANT:'", "'<turn>ASSISTANT:'"))
    with pytest.raises(UserError, match=r"got '<turn>' \(321\), expected"):
        models.load(str(copy))


def test_the_tokenizer_of_clip_is_looked_at_too(llava_checkpoint, clip_checkpoint, tmp_path):
    clip = shutil.copytree(clip_checkpoint(2)[0], tmp_path / "clip")
    tokenizer = Tokenizer.from_file(str(clip / "tokenizer.json"))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(clip / "tokenizer.json"))
    parts = models.load(str(llava_checkpoint()[0]), clip=str(clip))
    with pytest.raises(UserError, match=r"got 'zebra' \(300\), expected numbers below 300"):
        parts.open_clip()


def only_in_the_config(path, edit_json, content, special):
    token = {"content": content, "special": special, "lstrip": False, "rstrip": False, "normalized": False}
    edit_json(path / "tokenizer_config.json", added_tokens_decoder={"310": token | {"single_word": False}})


def test_a_word_that_only_the_tokenizers_config_has_is_refused(copy, edit_json):
    only_in_the_config(copy, edit_json, "zebra", special=False)
    assert AutoTokenizer.from_pretrained(copy)("a zebra")["input_ids"][-1] >= ROWS  # transformers adds it
    with pytest.raises(UserError, match=r"lacks tokens that tokenizer_config.json has .* 'zebra'"):
        models.load(str(copy))


def test_a_special_token_that_only_the_tokenizers_config_has_is_refused_where_it_is_needed(copy, edit_json):
    only_in_the_config(copy, edit_json, "<turn>", special=True)
    models.load(str(copy))
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("'ASSISTANT:'", "'<turn>ASSISTANT:'"))
    with pytest.raises(UserError, match="'<turn>', expected each in both"):
        models.load(str(copy))


def test_tidying_up_is_refused_where_transformers_does_it(copy, edit_json):
    edit_json(copy / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    models.load(str(copy))  # BPE
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = list(tokenizer["model"]["vocab"])
    tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[word, -1.0] for word in vocabulary]}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"clean_up_tokenization_spaces .* Unigram"):
        models.load(str(copy))


@pytest.fixture
def older(copy, tmp_path, monkeypatch):
    """A bundle of such a checkpoint, built when nothing compared the two."""
    add(copy, "zebra")
    monkeypatch.setattr(llava, "refuse_tokens_beyond", lambda *_: None)
    parts = models.load(str(copy))
    build(parts, methods.load("none"), tmp_path / "bundle", precision="fp32", dialects=["ort"])
    compile_bundle(tmp_path / "bundle")
    return Pipeline.load(tmp_path / "bundle")


def test_a_bundle_of_before_says_which_word_the_model_does_not_know(older):
    image = Image.new("RGB", (60, 60))
    with pytest.raises(UserError, match=r"does not know 'zebra' .* 320 rows"):
        older.generate(image, "is it a zebra or a cat?", max_new_tokens=2)
    assert older.generate(image, "is it a cat?", max_new_tokens=2).tokens
