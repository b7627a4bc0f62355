"""The tables of keys have every key of transformers' classes, and say truly what the code reads."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import qwen_checkpoint
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

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.directory import Directory
from foveate.export.checkpoints.files import SETTINGS
from foveate.export.keys import checkpoint_keys, config_keys, processor_keys, settings_types
from foveate.export.keys.key_table import Key
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


# --- what the code reads ---


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


@pytest.fixture(params=["llava", "llava_next", "qwen2_5_vl"])
def checkpoint(request, tmp_path, save_checkpoint, llava_checkpoint):
    if request.param == "llava":
        return llava_checkpoint()[0], request.param
    if request.param == "llava_next":
        save_checkpoint(tmp_path / "checkpoint", tiles=True)
    else:
        qwen_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint", request.param


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


# --- what happens to checkpoints ---


def test_checkpoints_as_transformers_saves_them_give_no_warning(checkpoint, capfd):
    models.load(str(checkpoint[0]))
    assert "does not know" not in capfd.readouterr().err


def test_unknown_keys_are_named_a_line_for_each_file(copy, edit_json, capfd):
    text = json.loads((copy / "config.json").read_text())["text_config"] | {"residual_multiplier": 2}
    edit_json(copy / "config.json", text_config=text, mm_gate=1)
    edit_json(copy / "tokenizer_config.json", lowercase_all=True)
    models.load(str(copy))
    lines = [line for line in capfd.readouterr().err.splitlines() if "does not know" in line]
    assert len(lines) == 2
    assert "what mm_gate, text_config.residual_multiplier in config.json mean," in lines[0]
    assert "what lowercase_all in tokenizer_config.json means," in lines[1]


REFUSED = {
    "another architecture": (
        "config.json",
        {"architectures": ["LlavaForSequenceClassification"]},
        "architectures",
    ),
    "its own code": ("config.json", {"auto_map": {"AutoModel": "modeling.MyModel"}}, "auto_map"),
    "layers that differ": (
        "config.json",
        {"per_layer_config": {"0": {"hidden_size": 3}}},
        "per_layer_config",
    ),
    "heads cut out": ("config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "original LLaVA": ("config.json", {"mm_vision_tower": "openai/clip"}, "mm_vision_tower"),
    "code of a processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "p.P"}}, "auto_map"),
    "code of a tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["t.T", None]}},
        "auto_map",
    ),
    "another pattern": ("tokenizer_config.json", {"fix_mistral_regex": True}, "fix_mistral_regex"),
}


@pytest.mark.parametrize(("file", "values", "named"), REFUSED.values(), ids=REFUSED)
def test_refused_keys_are_named(copy, edit_json, file, values, named):
    edit_json(copy / file, **values)
    with pytest.raises(UserError, match=f"{named} in {file} is not supported") as error:
        models.load(str(copy))
    assert str(error.value).count(" | ") == 2


INNER = {
    "partial rotary embedding": ("text_config", {"partial_rotary_factor": 0.5}),
    "activation": ("text_config", {"hidden_act": "gelu"}),
    "biases of the MLP": ("text_config", {"mlp_bias": True}),
    "quantized inside": ("text_config", {"quantization_config": {"quant_method": "awq"}}),
    "one colour": ("vision_config", {"num_channels": 1}),
}


@pytest.mark.parametrize(("part", "values"), INNER.values(), ids=INNER)
def test_refused_keys_inside_are_named(copy, edit_json, part, values):
    inner = json.loads((copy / "config.json").read_text())[part]
    edit_json(copy / "config.json", **{part: inner | values})
    with pytest.raises(UserError, match=rf"{part}\.{next(iter(values))} in config.json is not supported"):
        models.load(str(copy))


def test_embeddings_of_layers_are_refused(copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    text["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    edit_json(copy / "config.json", text_config=text)
    with pytest.raises(UserError, match=r"text_config\.rope_parameters\.full_attention"):
        models.load(str(copy))


QWEN = {
    "windows": ({"use_sliding_window": True}, {}),
    "windows of some layers": ({"layer_types": ["full_attention", "sliding_attention"]}, {}),
    "another base": ({}, {"rope_parameters": {"rope_type": "axial", "rope_theta": 5000.0}}),
    "another activation": ({}, {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize(("text", "vision"), QWEN.values(), ids=QWEN)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_refused_keys_of_qwen(tmp_path, text, vision, flat):
    qwen_checkpoint.save_checkpoint(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"] |= text
    values["vision_config"] |= vision
    if flat:
        values = values.pop("text_config") | values
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=next(iter(text | vision))):
        models.load(str(tmp_path))


def test_the_clip_checkpoint_is_held_against_its_table(llava_checkpoint, clip_checkpoint, tmp_path):
    clip = shutil.copytree(clip_checkpoint(2)[0], tmp_path / "clip")
    values = json.loads((clip / "config.json").read_text())
    values["text_config"]["pruned_heads"] = {"0": [1]}
    (clip / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"text_config\.pruned_heads in config\.json"):
        models.load(str(llava_checkpoint()[0]), clip=str(clip))


def test_a_value_is_harmless_by_its_kind_too():
    key = Key("refused", "why", (False, 1.0, ["x"]))
    assert not any(map(key.refuses, (None, False, 1, 1.0, ["x"], [False, False])))
    assert all(map(key.refuses, (0, True, 2, [True], "false")))
