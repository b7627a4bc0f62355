"""Options of an answer and the bundle's defaults."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.llm.generation import Generation, Options
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.penalties import Penalties
from foveate.runtime.llm.sampling import Sampler, Sampling
from foveate.runtime.pipeline import Pipeline

SAID = {
    "repetition_penalty": 1.05,
    "no_repeat_ngram_size": 3,
    "max_new_tokens": 7,
    "stop_strings": ["USER:"],
    "sample": {"temperature": 0.7, "top_p": 0.8},
    "of a later version": 1,
}


@pytest.fixture(scope="module")
def told(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a checkpoint that says something of its answers."""
    root = tmp_path_factory.mktemp("told") / "bundle"
    shutil.copytree(bundle, root)
    data = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps({**data, "generation": SAID}))
    return root


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_new_tokens": 0}, "wrong max-new-tokens"),
        ({"min_new_tokens": -1}, "wrong min-new-tokens"),
        ({"repetition_penalty": 0.0}, "wrong repetition-penalty"),
        ({"repetition_penalty": float("nan")}, "wrong repetition-penalty"),
        ({"no_repeat_ngram_size": -1}, "wrong no-repeat-ngram-size"),
        ({"stop": ["a", ""]}, "wrong stop"),
        ({"top_p": 0.9}, "top-p alone does nothing"),
        ({"top_k": 3}, "top-k alone does nothing"),
        ({"temperature": 1.0, "top_k": 0}, "wrong top-k"),
        ({"sample": True, "top_p": 2}, "wrong top-p"),
    ],
)
def test_options_out_of_range(asked: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        Options(**asked)
    assert error.value.code == 2


def test_an_unknown_option_is_a_mistake_in_the_program(bundle: Path) -> None:
    with pytest.raises(TypeError, match="temprature"):
        Pipeline.load(bundle).generate(None, "Why?", temprature=1)


def test_lengths_of_the_answer_go_before_those_of_both() -> None:
    both = Generation(min_length=90, max_length=100)
    assert (Options().over(both).min_length, Options().over(both).max_length) == (90, 100)
    asked = Options(max_new_tokens=5, min_new_tokens=0).over(both)
    assert (asked.min_length, asked.max_length, asked.max_new_tokens) == (0, None, 5)
    own = Options().over(Generation(min_length=90, max_length=100, min_new_tokens=2, max_new_tokens=9))
    assert (own.min_length, own.max_length) == (0, None)


def test_sampling_that_foveate_does_not_have_is_refused_where_it_is_asked_for() -> None:
    bundle = Generation.from_json({"sample": {"temperature": 0.5, "min_p": 0.1}})
    assert Options().over(bundle).sampling == Sampling()
    assert Options(temperature=0.4).over(bundle).sampling == Sampling(0.4)
    with pytest.raises(UserError, match="min_p"):
        Options(sample=True).over(bundle)


def test_older_bundles_say_nothing(bundle: Path) -> None:
    assert Pipeline.load(bundle).generation == Generation()


def test_the_bundle_s_defaults_on_the_command_line(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*options: str) -> list[int]:
        assert cli.main(["run", str(told), "Why?", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["tokens"]

    pipe = Pipeline.load(told)
    default = tokens()
    assert len(default) == 7 and default == pipe.generate(None, "Why?").tokens
    off = ["--repetition-penalty", "1.0", "--no-repeat-ngram-size", "0", "--max-new-tokens", "12"]
    free = tokens(*off)
    asked = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": 12}
    assert free == pipe.generate(None, "Why?", **asked).tokens and len(free) == 12
    assert tokens("--repetition-penalty", "9", "--max-new-tokens", "12") != free
    drawn = {seed: tokens("--sample", "--seed", seed) for seed in "123"}
    assert drawn["1"] == pipe.generate(None, "Why?", temperature=0.7, top_p=0.8, top_k=50, seed=1).tokens
    assert len(set(map(tuple, drawn.values()))) > 1


def test_inspect_shows_both(told: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(told)]) == 0
    text = capsys.readouterr().out
    assert (
        "answers     greedy by default; end at token 258; repetition penalty 1.05; "
        "no n-gram of 3 tokens twice; "
        "at most 7 tokens; stops at 'USER:'\n--sample    temperature 0.7, top-k 50, top-p 0.8\n"
    ) in text
    assert cli.main(["inspect", str(told), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert answers["stop_ids"] == [258] and answers["repetition_penalty"] == 1.05
    assert answers["sample"] == {"temperature": 0.7, "top_k": 50, "top_p": 0.8}
    assert cli.main(["inspect", str(bundle)]) == 0
    assert "answers     greedy by default; end at token 258\n" in capsys.readouterr().out


def test_an_engine_s_candidates_are_not_taken_for_logits_that_change() -> None:
    """The largest of the engine are all suppressed: what is chosen is not among them."""
    values = np.arange(200, dtype=np.float32)
    order = np.argsort(-values)[:64]
    logits = Logits(values, (values[order][None, None], order.astype(np.int32)[None, None]))
    generation = Generation(suppress_tokens=tuple(range(100, 200)), begin_suppress_tokens=(99,))
    for sampling in (Sampling(), Sampling(1e-6, top_k=3)):
        sampler = Sampler(sampling, Penalties(generation, np.empty(0, np.int64), {5}))
        assert [sampler(logits, answer) for answer in ([], [1])] == [98, 99]
    only_first = Penalties(Generation(begin_suppress_tokens=(199,)), np.empty(0, np.int64), ())
    assert only_first.at(0) and not only_first.at(1), "behind the first token the candidates serve again"


def test_an_answer_without_any_token_left_is_refused() -> None:
    sampler = Sampler(Sampling(), Penalties(Generation(suppress_tokens=(0, 1)), np.empty(0, np.int64), ()))
    with pytest.raises(UserError, match="no token is left"):
        sampler(Logits(np.zeros(2, np.float32)))


@pytest.mark.parametrize("penalty", (1e-46, 1e-38, 1e39))
def test_a_penalty_that_float32_cannot_follow_is_named(penalty: float) -> None:
    """The model is not at fault. A penalty that makes a token impossible leaves the others."""
    logits = np.array([0.0, 30.0, -3.0, 1.0], np.float32)
    sampler = Sampler(Sampling(), Penalties(Generation(repetition_penalty=penalty), np.array([0, 1, 2]), ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if penalty > 1:
            assert sampler(Logits(logits)) == 3
            return
        with pytest.raises(UserError, match=f"the repetition penalty {penalty}"):
            sampler(Logits(logits))
