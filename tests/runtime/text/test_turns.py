"""Turns as ordered parts: how they are made, and what a prompt of parts becomes in the pipeline."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_format import date_piece
from foveate.runtime.text.turns import IMAGE, Turn, user_turn


def test_a_text_and_a_number_of_images_are_images_first():
    assert Turn("user", "What?", 2).parts == (IMAGE, IMAGE, "What?")
    assert Turn("user", None, 1).parts == (IMAGE,) and Turn("user", "").parts == ("",)
    assert (
        Turn("user", "What?", 1)
        == Turn("user", parts=[IMAGE, "What?"])
        != Turn("user", parts=["What?", IMAGE])
    )
    with pytest.raises(ValueError, match="not both"):
        Turn("user", "What?", parts=[IMAGE])


def test_text_and_images_of_parts():
    turn = Turn("user", parts=["Is ", IMAGE, " like ", IMAGE])
    assert (turn.text, turn.images, turn.texts) == ("Is like", 2, ["Is ", " like "])
    assert Turn("user", "  as it is ").text == "  as it is "
    assert Turn("user", None, 1).text is None


def test_a_prompt_becomes_a_turn():
    assert user_turn("What?", 2) == Turn("user", "What?", 2)
    assert user_turn(["Is ", IMAGE, "?"], 1).parts == ("Is ", IMAGE, "?")
    assert user_turn(["a", "b"], 1).parts == (IMAGE, "a", "b")


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ([IMAGE, "What?"], 2, "got 1 places in the prompt, 2 images"),
        ([IMAGE, "What?"], 0, "got 1 places in the prompt, 0 images"),
        ([IMAGE, " "], 1, "the prompt is empty"),
        ([], 1, "the prompt is empty"),
        ("\n ", 0, "the prompt is empty"),
        (["What?", None], 1, "a part of type NoneType"),
        ([b"What?"], 0, "a part of type bytes"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt, images, message):
    with pytest.raises(UserError, match=message) as error:
        user_turn(prompt, images)
    assert error.value.code == 2


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(12)
    return [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(count)]


def test_the_pipeline_takes_parts(pipe: Pipeline):
    """An image behind words is another prompt than one before them, and a conversation keeps its order."""
    shown = images(2)
    parts = ["Is ", IMAGE, " like ", IMAGE, "?"]
    one = pipe.generate(shown, parts, keep=4, max_new_tokens=6)
    first = pipe.generate(shown, "Is like ?", keep=4, max_new_tokens=6)
    assert len(one.kept) == 2 and one.tokens != first.tokens
    chat = pipe.chat()
    assert chat.ask(parts, shown, keep=4, max_new_tokens=6).tokens == one.tokens
    assert chat.turns[0].parts == tuple(parts)
    again = chat.ask("Why?", keep=4, max_new_tokens=4)
    assert again.timings.reused_rows > 8  # the interleaved turn is in the cache


def test_a_typed_marker_in_the_library_stays_text(pipe: Pipeline):
    (shown,) = images(1)
    answer = pipe.generate(shown, "What is <image>?", keep=4, max_new_tokens=2)
    assert len(answer.kept) == 1
    ids = pipe.tokenizer.encode_turns([Turn("user", "What is <image>?", 1)])
    assert sum(not isinstance(segment, np.ndarray) for segment in ids) == 1


def test_special_tokens_stay_in_the_text_on_request(pipe: Pipeline):
    """The tiny model says random tokens, special ones among them; the history of a chat never holds them."""
    for seed in range(60):
        options = {"keep": 4, "max_new_tokens": 40, "temperature": 3.0, "seed": seed}
        plain = pipe.generate(None, "What?", **options)
        kept = pipe.generate(None, "What?", keep_special=True, **options)
        assert kept.tokens == plain.tokens
        assert kept.text == pipe.tokenizer.decode(kept.tokens, keep_special=True).lstrip()
        assert "</s>" not in kept.text  # the stop id
        if kept.text != plain.text:
            break
    else:
        pytest.fail("no special token in 60 answers")
    chat = pipe.chat()
    chat.ask("What?", keep_special=True, **options)
    assert chat.turns[-1].text == plain.text
    at = next(i for i, (one, two) in enumerate(zip(kept.text, plain.text, strict=False)) if one != two)
    stop = plain.text[max(0, at - 3) : at + 3]  # arises only where the special token is left out
    assert stop not in kept.text
    chat = pipe.chat()
    assert chat.ask("What?", keep_special=True, stop=stop, **options).text == kept.text
    assert chat.turns[-1].text == plain.text


def test_a_conversation_has_the_date_of_its_start(bundle: Path, monkeypatch):
    """Also in later turns, so that the cache stays of use."""
    pipe = Pipeline.load(bundle)
    monkeypatch.setitem(pipe.tokenizer.settings, "before", date_piece("It is %d %b %Y, %H:%M. "))
    dates = []
    encode = pipe.tokenizer.encode_turns

    def watched(turns, **options):
        dates.append(options["now"])
        return encode(turns, **options)

    monkeypatch.setattr(pipe.tokenizer, "encode_turns", watched)
    chat, day = pipe.chat(started=datetime(2026, 2, 3, 4, 5)), datetime(2026, 2, 3, 4, 5)
    chat.ask("What?", max_new_tokens=4)
    later = chat.ask("Why?", max_new_tokens=4)
    assert dates == [day, day] and later.timings.reused_rows > len("It is 03 Feb 2026, 04:05. What?")
    text = pipe.tokenizer.decode(encode([Turn("user", "What?")], now=day)[0])
    assert text.startswith("It is 03 Feb 2026, 04:05. U: What?")
    before = datetime.now()
    pipe.chat().ask("What?", max_new_tokens=1)
    assert before <= dates[-1] <= datetime.now()


def test_reasoning_is_cut_out_of_earlier_answers(bundle: Path, monkeypatch):
    """Cached reasoning is not reused: the next turn equals a fresh prompt without it."""
    pipe = Pipeline.load(bundle)
    (shown,) = images(1)
    chat = pipe.chat()
    answer = chat.ask("What?", shown, keep=4, max_new_tokens=12)
    end = answer.text[4]
    rule = {"assistant": {"end": end, "left": None}}
    monkeypatch.setitem(pipe.tokenizer.settings, "reasoning", rule)
    second = chat.ask("Why?", keep=4, max_new_tokens=8)
    assert chat.turns[1].text == answer.text  # the conversation keeps it
    monkeypatch.delitem(pipe.tokenizer.settings, "reasoning")
    again = pipe.chat()
    again.ask("What?", shown, keep=4, max_new_tokens=12)
    whole = again.ask("Why?", keep=4, max_new_tokens=8)
    fresh = pipe.chat()
    fresh.ask("What?", shown, keep=4, max_new_tokens=12)
    fresh.turns[1] = Turn("assistant", answer.text.split(end)[-1].lstrip())
    assert second.tokens == fresh.ask("Why?", keep=4, max_new_tokens=8).tokens
    assert second.timings.prompt_rows < whole.timings.prompt_rows
