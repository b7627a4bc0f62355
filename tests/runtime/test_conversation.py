"""A conversation with one cache says what fresh full prompts would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.pipeline import Chat, Pipeline
from foveate.runtime.text.chat_prompt import Turn

FIRST, SECOND, THIRD = "What?", "Left?", "Why?"


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(8)
    return [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(count)]


def fresh(
    pipe: Pipeline, chat: Chat, steps: int, image: np.ndarray | None = None, keep: int = 4
) -> list[int]:
    """The last answer of ``chat``, from an empty cache: same turns, same pruned images before ``image``."""
    again = pipe.chat()
    again.turns, again._shown = chat.turns[:-2], chat._shown[: None if image is None else -1]
    answer = again.ask(chat.turns[-2].text, image, keep=keep, max_new_tokens=steps)
    assert answer.timings.reused_rows == 0
    return answer.tokens


def test_reuse_equals_a_fresh_full_prompt(pipe: Pipeline) -> None:
    chat, (image,) = pipe.chat(), images(1)
    first = chat.ask(FIRST, image, keep=4, max_new_tokens=6)
    assert first.timings.reused_rows == 0
    assert first.tokens == pipe.generate(image, FIRST, keep=4, max_new_tokens=6).tokens
    for text in (SECOND, THIRD):
        before = chat._decoder.length
        answer = chat.ask(text, max_new_tokens=6)
        assert 10 < answer.timings.reused_rows <= before
        assert answer.timings.vision == answer.timings.prune == 0
        assert answer.tokens == fresh(pipe, chat, 6)
        np.testing.assert_array_equal(answer.kept[0], first.kept[0])
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 3


def test_positions_kept_in_a_chat(make_bundle) -> None:
    from foveate.runtime.compiling.compile import compile_bundle

    root = make_bundle(mode="keep")
    compile_bundle(root)
    pipe = Pipeline.load(root)
    chat = pipe.chat()
    chat.ask(FIRST, images(1), keep=4, max_new_tokens=6)
    answer = chat.ask(SECOND, max_new_tokens=6)
    assert answer.timings.reused_rows > 10
    assert answer.tokens == fresh(pipe, chat, 6)


def test_a_second_image_later(pipe: Pipeline) -> None:
    chat, (one, two) = pipe.chat(), images(2)
    chat.ask(FIRST, one, keep=4, max_new_tokens=5)
    answer = chat.ask(SECOND, two, keep=6, max_new_tokens=5)
    assert [len(kept) for kept in answer.kept] == [4, 6]
    assert answer.timings.reused_rows > 4
    assert answer.tokens == fresh(pipe, chat, 5, two, keep=6)
    # each image was pruned with the words of its own turn
    np.testing.assert_array_equal(answer.kept[0], pipe.generate(one, FIRST, keep=4, max_new_tokens=1).kept[0])
    np.testing.assert_array_equal(
        answer.kept[1], pipe.generate(two, SECOND, keep=6, max_new_tokens=1).kept[0]
    )


def test_reprune(pipe: Pipeline) -> None:
    chat, (image,) = pipe.chat(), images(1)
    kept = chat.ask("a", image, keep=5, max_new_tokens=3).kept[0]
    text = next(
        t for t in "zQ#7!" if set(pipe.generate(image, t, keep=5, max_new_tokens=1).kept[0]) != set(kept)
    )
    np.testing.assert_array_equal(chat.ask(text, max_new_tokens=3).kept[0], kept)
    answer = chat.ask(text, reprune=True, max_new_tokens=3)
    expected = pipe.generate(image, text, keep=5, max_new_tokens=1).kept[0]
    np.testing.assert_array_equal(answer.kept[0], expected)
    assert answer.timings.reused_rows < 5  # what stands before the image
    assert answer.timings.vision == 0
    assert answer.tokens == fresh(pipe, chat, 3)
    assert len(chat.ask(text, reprune=True, keep=7, max_new_tokens=1).kept[0]) == 7


def test_an_answer_broken_off_is_forgotten(pipe: Pipeline) -> None:
    chat, (image,) = pipe.chat(), images(1)
    chat.ask(FIRST, image, keep=4, max_new_tokens=4)
    turns = list(chat.turns)
    stream = chat.stream("Tell me a lot", max_new_tokens=30)
    for _ in range(2):
        next(stream)
    stream.close()
    assert chat.turns == turns
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.answer
    answer = chat.ask(SECOND, max_new_tokens=6)
    assert answer.tokens == fresh(pipe, chat, 6)


def test_a_question_is_refused_while_another_one_is_answered(pipe: Pipeline) -> None:
    chat, (image,) = pipe.chat(), images(1)
    stream, late = (chat.stream(FIRST, image, keep=4, max_new_tokens=9) for _ in range(2))
    next(stream)
    for question in (lambda: chat.ask(SECOND), lambda: next(late)):
        with pytest.raises(UserError, match="still answering") as error:
            question()
        assert error.value.code == 2
    expected = pipe.generate(image, FIRST, keep=4, max_new_tokens=9)
    assert stream.finish().tokens == expected.tokens
    assert chat.ask(SECOND, max_new_tokens=6).tokens == fresh(pipe, chat, 6)


def test_an_error_leaves_the_chat_as_it_was(pipe: Pipeline) -> None:
    chat = pipe.chat()
    chat.ask(FIRST, max_new_tokens=4)
    turns = list(chat.turns)
    for wrong in ({"text": ""}, {"text": "x" * 200}, {"text": "y", "image": "no-such-file.png"}):
        with pytest.raises(UserError):
            chat.ask(**wrong)
    assert chat.turns == turns
    chat.ask(SECOND, max_new_tokens=6)
    assert chat._decoder.length > 0


def test_the_cache_grows_with_the_chat(pipe: Pipeline) -> None:
    chat = pipe.chat()
    small = chat.ask(FIRST, max_new_tokens=2).timings.cache_bytes_allocated
    large = chat.ask(SECOND, max_new_tokens=30).timings.cache_bytes_allocated
    assert large > small
    same = chat.ask(THIRD, max_new_tokens=1).timings
    assert same.cache_bytes_used <= same.cache_bytes_allocated


def test_a_system_turn_opens(pipe: Pipeline) -> None:
    chat = pipe.chat(system="Be brief.")
    chat.ask(FIRST, max_new_tokens=2)
    assert chat.turns[0] == Turn("system", "Be brief.")
    other = pipe.chat().ask(FIRST, max_new_tokens=2)
    assert chat._decoder.length > other.timings.prompt_rows


def test_the_conversation_fills_the_model(pipe: Pipeline) -> None:
    chat = pipe.chat()
    with pytest.raises(UserError, match="the prompt is too long"):
        for _ in range(20):
            chat.ask("and so on", max_new_tokens=10)
    assert chat._decoder.length <= 128
