"""The tables of keys have every key of transformers' classes, and say truly what the code reads."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.processing_utils import VideosKwargs
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from foveate.export import models
from foveate.export.checkpoints.directory import Directory
from foveate.export.checkpoints.files import SETTINGS
from foveate.export.keys import checkpoint_keys, config_keys, processor_keys, settings_types
from foveate.export.models import qwen2_5_vl
from foveate.export.settings import hf_config

CONFIGS = {
    LlavaConfig: config_keys.LLAVA,
    LlavaNextConfig: config_keys.LLAVA_NEXT,
    Qwen2_5_VLConfig: config_keys.QWEN,
    CLIPConfig: config_keys.CLIP.top,
    LlamaConfig: config_keys.TEXT["llama"],
    MistralConfig: config_keys.TEXT["mistral"],
    Qwen2_5_VLTextConfig: config_keys.TEXT["qwen2_5_vl_text"],
    CLIPTextConfig: config_keys.TEXT["clip_text_model"],
    CLIPVisionConfig: config_keys.CLIP_VISION,
    Qwen2_5_VLVisionConfig: config_keys.QWEN_VISION,
}


def table(family, file):
    return processor_keys.tables(models.family(family).KEYS)[(file,)]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_key_of_a_config_class_is_in_its_table(kind):
    keys = {*inspect.signature(kind).parameters, *kind().to_dict(), *kind.attribute_map.values()} - {"kwargs"}
    keys |= {*inspect.signature(PreTrainedConfig).parameters, *PreTrainedConfig().to_dict()} - {"kwargs"}
    keys |= set(GenerationConfig._get_default_generation_params())  # older configs have them
    assert not keys - CONFIGS[kind].keys()


def test_every_key_of_nested_objects_is_in_its_table():
    for kind, part in ((LlamaConfig, "text_config"), (Qwen2_5_VLVisionConfig, "vision_config")):
        assert not kind().rope_parameters.keys() - config_keys.NESTED["rope_parameters"][part].keys()


IMAGES = {
    CLIPImageProcessorPil: "llava",
    LlavaImageProcessorPil: "llava",
    LlavaNextImageProcessorPil: "llava_next",
    Qwen2VLImageProcessorPil: "qwen2_5_vl",
}


@pytest.mark.parametrize("kind", IMAGES, ids=lambda kind: kind.__name__)
def test_every_key_of_an_image_processor_is_in_its_table(kind):
    keys = {*kind.valid_kwargs.__annotations__, *kind().to_dict()}
    assert not keys - table(IMAGES[kind], "preprocessor_config.json").keys()


def test_every_key_of_the_video_processor_is_in_its_table():
    """Its module needs torchvision, so the class's own keys are read from the source."""
    source = (
        Path(inspect.getfile(Qwen2VLImageProcessorPil)).with_name("video_processing_qwen2_vl.py").read_text()
    )
    own = source.partition("class Qwen2VLVideoProcessorInitKwargs")[2].partition("def __init__")[0]
    names = set(re.findall(r"^    (\w+)(?: \(`.*| = .*|: \w+)$", own, re.MULTILINE))
    assert {"max_video_tokens", "do_sample_frames", "use_token_compression", "min_pixels"} <= names
    names |= set(VideosKwargs.__annotations__)
    assert not names - {"valid_kwargs"} - table("llava", "video_preprocessor_config.json").keys()


def test_every_key_of_the_processors_is_in_their_table():
    keys = {
        name
        for kind in (LlavaProcessor, LlavaNextProcessor, Qwen2_5_VLProcessor)
        for name in inspect.signature(kind.__init__).parameters
    }
    keys -= {"self", "kwargs", "tokenizer"}  # the tokenizer has files of its own
    assert not keys - table("llava", "processor_config.json").keys()


def test_every_key_of_the_generation_config_is_in_its_table():
    assert not GenerationConfig().to_dict().keys() - table("llava", "generation_config.json").keys()


def test_every_key_of_a_tokenizer_is_in_its_table():
    tokens = set(PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)
    assert not tokens - table("llava", "special_tokens_map.json").keys()
    read = {
        name
        for kind in (PreTrainedTokenizerBase, TokenizersBackend)
        for name in re.findall(r'kwargs\.(?:pop|get|setdefault)\("(\w+)"', inspect.getsource(kind.__init__))
    }
    assert {"split_special_tokens", "fix_mistral_regex"} <= read
    # What is handed over by callers, or is the text of tokenizer.json itself.
    inside = {
        "tokenizer_object",
        "gguf_file",
        "vocab_file",
        "vocab",
        "merges",
        "unk_id",
        "post_processor",
        "tokenizer",
    }
    inside |= {"_json_truncation", "_json_padding", "tokenizer_truncation", "tokenizer_padding"}
    read -= inside | {"_spm_precompiled_charsmap"}
    assert not (tokens | read) - table("llava", "tokenizer_config.json").keys()


def test_defaults_are_those_of_transformers():
    for ours, kind in (
        (hf_config._CLIP_VISION, CLIPVisionConfig),
        (hf_config._LLAMA, LlamaConfig),
        (hf_config._MISTRAL, MistralConfig),
        (hf_config._QWEN, Qwen2_5_VLTextConfig),
        (qwen2_5_vl._VISION_DEFAULTS, Qwen2_5_VLVisionConfig),
    ):
        theirs = kind()
        for key, value in ours.items():
            if key == "rope_theta":
                assert theirs.rope_parameters["rope_theta"] == value
            elif (kind, key) != (Qwen2_5_VLTextConfig, "sliding_window"):
                found = getattr(theirs, key)
                assert (list(found) if isinstance(found, tuple) else found) == value, (kind, key)


class Reading(dict):
    """A dict that notes which of its keys somebody asks for."""

    def __init__(self, values, read, path=()):
        self.read, self.path = read, path
        super().__init__({
            key: Reading(value, read, (*path, key)) if isinstance(value, dict) else value
            for key, value in values.items()
        })  # fmt: skip

    def _note(self, key):
        self.read.add((*self.path, key))

    def get(self, key, default=None):
        self._note(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self._note(key)
        return super().__getitem__(key)


@pytest.fixture
def reading(monkeypatch):
    """``reading(path)``: loads a checkpoint; every (file, path to a key) that was read."""

    def load(path):
        read = {}
        original = Directory.json

        def noting(self, name):
            values = original(self, name)
            return values if values is None else Reading(values, read.setdefault(name, set()))

        get = hf_config.Config.get

        def noting_get(self, key, default=None):
            part = self.where.rpartition(": ")[2]
            at = tuple(part.split(".")) if part.startswith(("text_config", "vision_config")) else ()
            read.setdefault("config.json", set()).add((*at, key))
            return get(self, key, default)

        monkeypatch.setattr(Directory, "json", noting)
        monkeypatch.setattr(hf_config.Config, "get", noting_get)
        for each in (checkpoint_keys, settings_types):  # both look at keys without using them
            monkeypatch.setattr(each, "check", lambda *_: None)
        models.load(str(path))
        return read

    return load


def listed(file, path, family):
    """Return what the tables say of a key."""
    if file == "config.json":
        keys = models.family(family).KEYS
        text = config_keys.TEXT[keys.text]
        tables = {(): keys.top, ("text_config",): text, ("vision_config",): keys.vision}
        for name, nested in config_keys.NESTED.items():
            tables |= {(part, name): table for part, table in nested.items()}
        return tables[path[:-1]].get(path[-1])
    nested = processor_keys.tables(models.family(family).KEYS).get((file, *path[:-1]))
    return (table(family, file) if nested is None else nested).get(path[-1 if nested else 0])


NOT_OF_THE_TABLE = {"decoder", "generator"}  # names under which transformers looks for a text_config


def test_every_key_that_is_read_is_listed_as_used(checkpoint, reading):
    path, family = checkpoint
    read = reading(path)
    assert ("text_config", "hidden_size") in read["config.json"]
    wrong = {}
    for file, keys in read.items():
        if file not in (*processor_keys.FILES, "config.json"):
            continue
        for where in keys:
            key = listed(file, where, family)
            if where[-1] not in NOT_OF_THE_TABLE and (key is None or not (key.status == "used" or key.by)):
                wrong[(file, *where)] = key
    assert not wrong


def test_every_settings_file_is_downloaded():
    assert not {*processor_keys.FILES, "config.json"} - set(SETTINGS)
