"""Answers under a generation_config.json are the tokens of transformers' ``generate`` with that file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_checkpoint import save_checkpoint as save_qwen
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.checkpoints.directory import Directory
from foveate.export.settings import generation
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.llm.generation import Generation, Options
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.penalties import Penalties
from foveate.runtime.llm.prompt_items import prompt_ids
from foveate.runtime.llm.sampling import Sampler, Sampling
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import ImageSlot
from foveate.runtime.text.turns import Turn
from foveate.runtime.video.video_file import Video

TEXT = "what is in the image, and où?"
LENGTH = 24


class Case(ABC):
    """A checkpoint, its bundle, and one prompt to both."""

    def __init__(self, root: Path, method: str = "none") -> None:
        self.checkpoint = root / "checkpoint"
        parts = models.load(str(self.checkpoint))
        build(parts, methods.load(method), root / "bundle", precision="fp32", dialects=["ort"])
        compile_bundle(root / "bundle")
        self.pipe = Pipeline.load(root / "bundle")
        rng = np.random.default_rng(3)
        self.image = Image.fromarray(rng.integers(0, 256, (60, 44, 3), np.uint8))

    def write(self, **keys: Any) -> None:
        (self.checkpoint / "generation_config.json").write_text(json.dumps(keys))

    def ours(self, **keys: Any) -> Pipeline:
        """The pipeline of a bundle that was built with such a generation_config.json."""
        self.write(**keys)
        source, old = Directory(self.checkpoint), self.pipe.bundle
        prompt = {**old.manifest.prompt, "stop_ids": generation.stop_ids(source, 2)}
        said = json.loads(json.dumps(generation.defaults(source)))
        manifest = replace(old.manifest, prompt=prompt, generation=said)
        return Pipeline(Bundle(old.path, manifest), self.pipe._engines)

    @abstractmethod
    def batch(self, turns: list[Turn]) -> dict[str, torch.Tensor]:
        """The inputs that transformers is given."""

    def theirs(self, turns: list[Turn], **asked: Any) -> list[int]:
        """Transformers' tokens by the file that ``write`` wrote, without the stop id."""
        model = AutoModelForImageTextToText.from_pretrained(self.checkpoint).eval()
        batch = self.batch(turns)
        said = model.generation_config
        length = {} if said.max_length or said.max_new_tokens else {"max_new_tokens": LENGTH}
        with torch.no_grad():
            out = model.generate(**batch, do_sample=False, **{**length, **asked})
        tokens, eos = out[0, batch["input_ids"].shape[1] :].tolist(), model.generation_config.eos_token_id
        stop = [] if eos is None else eos if isinstance(eos, list) else [eos]
        return tokens[:-1] if tokens[-1] in stop else tokens

    def ids(self, turns: list[Turn]) -> torch.Tensor:
        """[1, P]: the prompt with as many image tokens as the image has visual tokens."""
        segments = self.pipe.tokenizer.encode_turns(turns)
        plan = self.pipe.vision.open(self.image).layout
        held = [self.pipe.manifest.prompt["image_token_id"]] * plan.total
        ids = [held if isinstance(segment, ImageSlot) else segment for segment in segments]
        return torch.from_numpy(np.concatenate(ids).astype(np.int64))[None]


class Llava(Case):
    def __init__(self, root: Path, save_checkpoint, method: str = "none") -> None:
        _, self.processor = save_checkpoint(root / "checkpoint")
        super().__init__(root, method)

    def batch(self, turns):
        ids = self.ids(turns)
        pixels = self.processor.image_processor(self.image, return_tensors="pt")
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}

    def through_the_processor(self, text: str) -> list[int]:
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = self.processor.apply_chat_template(talk, add_generation_prompt=True)
        return self.processor(images=self.image, text=prompt).input_ids[0]


class Qwen(Case):
    def __init__(self, root: Path) -> None:
        model = save_qwen(root / "checkpoint")
        with torch.no_grad():  # else its answers repeat one token
            model.lm_head.weight.add_(0.05 * torch.randn_like(model.lm_head.weight))
        model.save_pretrained(root / "checkpoint")
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(root / "checkpoint")
        super().__init__(root)

    def batch(self, turns):
        ids = self.ids(turns)
        held = self.pipe.manifest.prompt["image_token_id"]
        pixels = self.processor(self.image, return_tensors="pt")
        types = (ids == held).int()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
            **pixels,
        }


@pytest.fixture(scope="module", params=["llava", "qwen"])
def case(request, tmp_path_factory, save_checkpoint):
    root = tmp_path_factory.mktemp(request.param)
    return Qwen(root) if request.param == "qwen" else Llava(root, save_checkpoint)


@pytest.fixture(scope="module")
def plain(case) -> list[int]:
    """The tokens without any setting."""
    case.write(eos_token_id=None)
    return case.theirs([Turn("user", TEXT, 1)])


SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition penalty": {"repetition_penalty": 1.3},
    "repetition reward": {"repetition_penalty": 0.8},
    "bigrams, which it would else repeat": {"repetition_penalty": 0.6, "no_repeat_ngram_size": 2},
    "single tokens": {"no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": [3, 100_000]},
    "stop ids": {"eos_token_id": [4, 8]},
    "least new tokens": {"eos_token_id": [0, 4], "min_new_tokens": 9},
    "least length": {"eos_token_id": [0, 4], "min_length": 70},
    "both": {"eos_token_id": [0, 4], "min_length": 100, "min_new_tokens": 3},
    "most new tokens": {"max_new_tokens": 7},
    "together": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [1, 5],
        "begin_suppress_tokens": [0],
        "eos_token_id": 6,
        "min_new_tokens": 12,
        "do_sample": True,
        "temperature": 0.7,
    },
}
"""Ids of ``eos_token_id`` and the suppressed tokens are in the answer without settings: 3 is its fourth."""


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens(case, plain, name: str) -> None:
    setting = dict(SETTINGS[name])
    for key in ("eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        if key in setting:
            value = setting[key]
            named = [
                plain[i] if i < len(plain) else i for i in (value if isinstance(value, list) else [value])
            ]
            setting[key] = named if isinstance(value, list) else named[0]
    pipe = case.ours(**{"eos_token_id": None, **setting})
    asked = {} if "max_new_tokens" in setting else {"max_new_tokens": LENGTH}
    expected = case.theirs([Turn("user", TEXT, 1)], **asked)
    answer = pipe.generate(case.image, TEXT, **asked)
    assert answer.tokens == expected
    assert (answer.tokens == plain) is (name == "none"), "the setting must tell"
    assert (answer.finish == "stop") is (len(answer.tokens) < LENGTH and "max_new_tokens" not in setting)


def test_the_longest_of_prompt_and_answer(case) -> None:
    prompt = case.ids([Turn("user", TEXT, 1)]).shape[1]
    pipe = case.ours(max_length=prompt + 5)
    answer = pipe.generate(case.image, TEXT)
    assert answer.tokens == case.theirs([Turn("user", TEXT, 1)]) and len(answer.tokens) == 5
    assert len(pipe.generate(case.image, TEXT, max_new_tokens=9).tokens) == 9
    with pytest.raises(UserError, match="max_length is 9"):
        case.ours(max_length=9).generate(case.image, TEXT)


def test_later_turns_count_the_whole_conversation(case) -> None:
    pipe = case.ours(repetition_penalty=1.25, no_repeat_ngram_size=3)
    chat, turns = pipe.chat(), []
    for number, text in enumerate((TEXT, "and why?", "since when?")):
        turns.append(Turn("user", text, int(number == 0)))
        answer = chat.ask(text, case.image if number == 0 else None, max_new_tokens=12)
        assert answer.tokens == case.theirs(turns, max_new_tokens=12)
        assert (answer.timings.reused_rows > 0) is (number > 0)
        turns.append(Turn("assistant", answer.text))


def test_an_option_overrides_the_bundle(case, plain) -> None:
    pipe = case.ours(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=30)
    asked = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
    assert pipe.generate(case.image, TEXT, max_new_tokens=LENGTH, **asked).tokens == plain
    expected = case.theirs([Turn("user", TEXT, 1)], **{**asked, "repetition_penalty": 1.1})
    answer = pipe.generate(case.image, TEXT, max_new_tokens=LENGTH, **{**asked, "repetition_penalty": 1.1})
    assert answer.tokens == expected != plain


def test_stop_strings_end_it_at_the_same_token(case) -> None:
    """Answers in ASCII: transformers looks for them in tokens, which may hold parts of a character."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(case.checkpoint / "tokenizer.json"))
    others = [number for number in range(len(tokenizer)) if not tokenizer.decode([number]).isascii()]
    setting = {"eos_token_id": None, "suppress_tokens": others}
    pipe = case.ours(**setting)
    free = pipe.generate(case.image, TEXT, max_new_tokens=LENGTH)
    whole = free.text
    stopped = 0
    for stop in (whole[3], whole[4:6], whole[5:9], whole[9:16], whole[-2:], "never there"):
        bundled = case.ours(**setting, stop_strings=[stop])
        expected = case.theirs([Turn("user", TEXT, 1)], tokenizer=tokenizer)
        for answer in (
            bundled.generate(case.image, TEXT, max_new_tokens=LENGTH),
            pipe.generate(case.image, TEXT, max_new_tokens=LENGTH, stop=stop),
        ):
            assert answer.tokens == expected
            assert answer.text == whole.split(stop)[0]
            assert (answer.stop, answer.finish) == ((stop, "stop") if stop in whole else (None, "length"))
        stopped += len(expected) < LENGTH
        assert bundled.generate(case.image, TEXT, max_new_tokens=LENGTH, stop=[]).tokens == free.tokens
    assert stopped >= 4


def test_the_ids_of_a_pruned_prompt_are_the_processor_s(tmp_path, save_checkpoint) -> None:
    case = Llava(tmp_path, save_checkpoint, method="uniform")
    pipe = case.ours()
    segments = pipe.tokenizer.encode_turns([Turn("user", TEXT, 1)])
    plan = pipe.vision.open(case.image).layout
    expected = case.through_the_processor(TEXT)
    assert prompt_ids(segments, [plan], pipe.manifest.prompt).tolist() == expected
    seen = []
    watched = case.ours(repetition_penalty=1.1)
    keep = plan.total // 4

    class Watching(Penalties):
        def __init__(self, generation, prompt, stop_ids) -> None:
            seen.append(prompt.tolist())
            super().__init__(generation, prompt, stop_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveate.runtime.answering.Penalties", Watching)
        answer = watched.generate(case.image, TEXT, keep=keep, max_new_tokens=2)
    assert len(answer.kept[0]) == keep and seen == [expected]


def test_a_video_counts_with_its_own_placeholder(case) -> None:
    if isinstance(case, Llava):
        with pytest.raises(UserError, match="takes no videos"):
            case.pipe.vision.open(Video((case.image,) * 4, 0.5))
        return
    video = Video((case.image,) * 4, 0.5)
    segments = case.pipe.tokenizer.encode_turns([Turn("user", TEXT, 2)])
    plans = [case.pipe.vision.open(each).layout for each in (case.image, video)]
    ids = prompt_ids(segments, plans, case.pipe.manifest.prompt).tolist()
    model = AutoModelForImageTextToText.from_pretrained(case.checkpoint)
    counts = [ids.count(getattr(model.config, f"{kind}_token_id")) for kind in ("image", "video")]
    assert counts == [plan.total for plan in plans]


def test_processors_and_their_order(case) -> None:
    """Random logits pass all penalties at once, against the list that ``generate`` makes of the file."""
    random = np.random.default_rng(6)
    prompt = random.integers(0, 40, 30)
    setting = {
        "eos_token_id": [3, 5],
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "min_length": 33,
        "suppress_tokens": [7, 900, -1],
        "begin_suppress_tokens": [9, 10],
    }
    case.write(**setting)
    model = AutoModelForImageTextToText.from_pretrained(case.checkpoint)
    config, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(config)
    theirs = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
    pipe = case.ours(**setting)
    ours = Penalties(pipe.generation, prompt, pipe.tokenizer.stop_ids)
    answer: list[int] = []
    for _ in range(12):
        logits = random.standard_normal(60).astype(np.float32) * 3
        ids = torch.from_numpy(np.concatenate([prompt, np.array(answer, np.int64)]))[None]
        expected = theirs(ids, torch.from_numpy(logits.copy())[None])[0].numpy()
        np.testing.assert_array_equal(ours(logits, answer), expected)
        answer.append(int(random.integers(0, 40)))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 20, 500])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.2, 0.9, 1.0])
def test_sampling_has_transformers_distribution(temperature, top_k, top_p) -> None:
    logits = np.random.default_rng(7).standard_normal(300).astype(np.float32) * 3
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
    scores = scores if top_p is None else TopPLogitsWarper(top_p)(None, scores)
    ids, chances = Sampler(Sampling(temperature, top_p, top_k)).distribution(Logits(logits))
    got = np.zeros(300)
    got[ids] = chances
    np.testing.assert_allclose(got, scores.softmax(-1)[0].numpy(), atol=1e-6)


def test_sample_takes_what_the_checkpoint_samples_with(case) -> None:
    """And what transformers samples with where the checkpoint is silent."""
    for keys in ({}, {"temperature": 0.6, "top_k": 7, "top_p": 0.8}, {"top_k": 0, "do_sample": True}):
        pipe = case.ours(**keys)
        model = AutoModelForImageTextToText.from_pretrained(case.checkpoint)
        theirs, _ = model._prepare_generation_config(None)
        drawing = {**pipe.generation.drawing}
        assert drawing == {name: getattr(theirs, name) for name in ("temperature", "top_k", "top_p")}
    generation = Generation.from_json({"sample": {"temperature": 0.6, "top_k": 7}})
    assert Options().over(generation).sampling == Sampling()
    assert Options(sample=True, seed=3).over(generation).sampling == Sampling(0.6, 1.0, 7, 3)
    assert Options(sample=True, temperature=0.2).over(generation).sampling == Sampling(0.2, 1.0, 7)
    assert Options(temperature=0.2).over(generation).sampling == Sampling(0.2)
