"""A checkpoint's generation settings, held to transformers' own reading of the same files."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from qwen_checkpoint import save_checkpoint as save_qwen
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
)

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.build import main
from foveate.export.checkpoints.directory import Directory
from foveate.export.keys.generation_keys import GENERATION
from foveate.export.settings import generation
from foveate.runtime.bundle.loading import load
from foveate.runtime.llm.generation import Generation, Options
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.sampling import Sampler

ABSENT = "absent"
FAMILIES = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory, save_checkpoint):
    """A checkpoint of each family, and transformers' class for it."""
    path = tmp_path_factory.mktemp(request.param) / "checkpoint"
    if request.param == "qwen2_5_vl":
        save_qwen(path)
    else:
        save_checkpoint(path, tiles=request.param == "llava_next")
    return path, FAMILIES[request.param]


def say(path, file: Any = ABSENT, top: Any = ABSENT, text: Any = ABSENT, key: str = "eos_token_id") -> None:
    """Put values of a key into generation_config.json, config.json and its text_config.

    "no file" stands for a checkpoint without generation_config.json.
    """
    config = json.loads((path / "config.json").read_text())
    for where, value in ((config, top), (config["text_config"], text)):
        where.pop(key, None)
        where |= {} if value == ABSENT else {key: value}
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").unlink(missing_ok=True)
    if file != "no file":
        said = {"_from_model_config": True} | ({} if file == ABSENT else {key: file})
        (path / "generation_config.json").write_text(json.dumps(said))


CASES = [("no file", *inner) for inner in product([ABSENT, None, 9, [9, 10]], [ABSENT, None, 11, [11, 12]])]
CASES += product([ABSENT, None, 7, [7, 8]], [ABSENT, 9], [ABSENT, 11])


def test_stop_ids_are_those_at_which_transformers_stops(checkpoint) -> None:
    path, kind = checkpoint
    for file, top, text in CASES:
        say(path, file, top, text)
        theirs = kind.from_pretrained(path).generation_config.eos_token_id
        theirs = [] if theirs is None else theirs if isinstance(theirs, list) else [theirs]
        assert generation.stop_ids(Directory(path), 2) == theirs, (file, top, text)
        if (file, top, text) in CASES[::6]:
            assert models.load(str(path)).prompt["stop_ids"] == theirs


def test_every_key_is_found_where_transformers_finds_it(checkpoint) -> None:
    path, kind = checkpoint
    for file, top, text in (
        ("no file", 1.2, ABSENT),
        ("no file", None, 1.3),
        (1.4, 1.2, 1.3),
        (ABSENT, 1.2, 1.3),
    ):
        say(path, file, top, text, key="repetition_penalty")
        theirs = kind.from_pretrained(path).generation_config.repetition_penalty
        assert generation.defaults(Directory(path)).get("repetition_penalty") == theirs


def test_the_table_has_every_key_of_transformers() -> None:
    assert GenerationConfig().to_dict().keys() - set(generation.KEYS) == set()
    assert list(GENERATION) == list(generation.KEYS) and len(GENERATION) == len(generation.KEYS)
    assert {key.status for key in GENERATION.values()} == {"used", "irrelevant", "refused"}


@pytest.fixture
def said(checkpoint):
    """``said(key=value)``: what foveate makes of a generation_config.json with these keys."""
    path, _ = checkpoint

    def make(**keys: Any) -> dict[str, Any]:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **keys}))
        return generation.defaults(Directory(path))

    return make


def test_neutral_values_are_left_out(said) -> None:
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "min_length": 0}
    assert said(**neutral, max_length=20, top_p=1.0, num_beams=1, typical_p=1.0, do_sample=True) == {}
    assert said() == said(**dict.fromkeys(generation.KEYS)) == {}


def test_defaults_and_what_sampling_takes(said) -> None:
    assert said(
        repetition_penalty=1.05, stop_strings="USER:", max_new_tokens=9, temperature=0.7, top_k=0
    ) == {
        "repetition_penalty": 1.05,
        "stop_strings": ("USER:",),
        "max_new_tokens": 9,
        "sample": {"temperature": 0.7, "top_k": 0},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("bad_words_ids", [[3, 4]]),
        ("penalty_alpha", 0.6),
        ("forced_eos_token_id", 0),
        ("encoder_repetition_penalty", 1.1),
        ("watermarking_config", {"bias": 2.0}),
        ("sequence_bias", [[[3], 1.0]]),
    ],
)
def test_keys_that_change_greedy_answers_are_refused_by_name(said, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"generation_config.json has {key}"):
        said(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.1"),
        ("no_repeat_ngram_size", 2.5),
        ("suppress_tokens", 3),
        ("stop_strings", [""]),
        ("max_new_tokens", 0),
        ("top_p", "0.9"),
        ("top_k", 2.5),
        ("temperature", "hot"),
    ],
)
def test_wrong_values_are_named(said, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"wrong {key}"):
        said(**{key: value})


class Drawing(GenerationMixin):
    """A stand-in with what ``_get_logits_processor`` asks of a model that samples."""

    def warpers(self, **keys: Any) -> LogitsProcessorList:
        config = GenerationConfig(do_sample=True, **({"top_k": 50, "temperature": 1.0} | keys))
        return self._get_logits_processor(config)


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [("top_k", -1, "--top-k"), ("top_p", -0.5, "--top-p"), ("temperature", -1.0, "--temperature")],
)
def test_unsupported_sampling_is_refused_by_sample_alone(said, key: str, value: Any, option: str) -> None:
    """The build takes the value, as transformers does: greedy answers do not read it."""
    found = said(**{key: value})
    (note,) = generation.notes([2], found)
    assert "--sample will be refused" in note and option in note and str(value) in note
    with pytest.raises(ValueError, match=key):
        Drawing().warpers(**{key: value})
    bundled = Generation.from_json(found)
    assert Options().over(bundled).sampling.temperature == 0
    with pytest.raises(UserError, match=rf"its {key} is {value}, .* give {option} as well") as error:
        Options(sample=True).over(bundled)
    assert error.value.code == 2
    assert getattr(Options(sample=True, **{key: 1}).over(bundled).sampling, key) == 1


@pytest.mark.parametrize(("key", "value"), [("top_k", 0), ("top_p", 0), ("top_p", 0.0), ("top_p", 1.5)])
def test_values_that_transformers_samples_with_are_accepted(said, key: str, value: Any) -> None:
    """``top_k`` 0 and ``top_p`` from 1 on are no limit, ``top_p`` 0 leaves the likeliest token alone."""
    found = said(**{key: value})
    assert generation.notes([2], found) == []
    ours = Sampler(Options(sample=True).over(Generation.from_json(found)).sampling)
    logits = np.random.default_rng(1).standard_normal(90).astype(np.float32)
    warp = Drawing().warpers(**{key: value})
    ids, chances = ours.distribution(Logits(logits))
    got = np.zeros(90)
    got[ids] = chances
    expected = warp(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None]).softmax(-1)[0]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


def test_wrong_stop_ids_are_named(checkpoint) -> None:
    path, _ = checkpoint
    for value in ("</s>", [2, None], 2.0):
        say(path, value)
        with pytest.raises(UserError, match="wrong eos_token_id"):
            generation.stop_ids(Directory(path), 2)


def test_a_build_tells_of_answers_without_an_end(tmp_path, save_checkpoint, capsys) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path)
    arguments = ["--model", str(path), "--method", "none", "--precision", "fp32", "--no-compile"]
    arguments += ["--dialects", "ort", "--out", str(tmp_path / "bundle")]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": None, "min_p": 0.1}))
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "no token ends an answer" in told and "--sample will be refused" in told and "min_p" in told
    manifest = load(tmp_path / "bundle").manifest
    assert manifest.prompt["stop_ids"] == [] and manifest.generation == {"sample": {"min_p": 0.1}}
