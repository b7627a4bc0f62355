"""Stop strings: the text ends before them, and no part of one is ever handed out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.llm.generation import Generation
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import Detokenizer
from foveate.runtime.text.stops import AnswerText, StopStrings, without_special

QUESTION = "What is left of the bus?"


def words(*texts: str) -> Tokenizer:
    """A token for each of the texts, and one for every byte, as LLaMA's tokenizer has them."""
    vocabulary = [*texts, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(vocabulary)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def spoken(tokenizer: Tokenizer, tokens: list[int], stops: list[str]) -> tuple[list[str], int, str | None]:
    """The pieces of an answer, after how many tokens it ended, and what ended it."""
    text, pieces, used = AnswerText(Detokenizer(tokenizer), stops), [], 0
    for token in tokens:
        pieces.append(text.step(token))
        used += 1
        if text.stop is not None:
            break
    pieces.append(text.finish())
    assert "".join(pieces) == text.text
    return [piece for piece in pieces if piece], used, text.stop


@pytest.mark.parametrize(
    ("tokens", "stops", "pieces", "used", "stop"),
    [
        (["st", "op"], ["stop"], [], 2, "stop"),
        (["a", "st", "opera"], ["stop"], ["a"], 3, "stop"),
        (["las", "topper"], ["stop"], ["la"], 2, "stop"),
        (["a", "st", "ay"], ["stop"], ["a", "stay"], 3, None),
        (["a", "st"], ["stop"], ["a", "st"], 2, None),
        (["a", "b", "ab", "c"], ["abab"], [], 3, "abab"),
        (["a", "b", "ac"], ["abab"], ["abac"], 3, None),
        (["a", "ab", "ab"], ["abab"], ["a"], 3, "abab"),
        (["ab", "ab", "c"], ["b", "ab"], [], 1, "ab"),
        (["a", "b", "c"], ["c", "bc"], ["a"], 3, "bc"),
    ],
)
def test_pieces(tokens, stops, pieces, used, stop) -> None:
    every = list(dict.fromkeys(tokens))
    assert spoken(words(*every), [every.index(token) for token in tokens], stops) == (pieces, used, stop)


def test_a_stop_string_in_bytes_ends_it_at_its_last_token() -> None:
    """LLaMA writes a new line as the token <0x0A>, whose text is open until another token follows."""
    tokenizer = words("a", "b")
    line, euro = (
        tokenizer.token_to_id("<0x0A>"),
        [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "€".encode()],
    )
    assert spoken(tokenizer, [0, line, 1], ["\n"]) == (["a"], 2, "\n")
    assert spoken(tokenizer, [0, line, line, 1], ["\n\n"]) == (["a"], 3, "\n\n")
    assert spoken(tokenizer, [0, *euro, 1], ["€"]) == (["a"], 4, "€")
    assert "".join(spoken(tokenizer, [0, line, 1], ["\n\n"])[0]) == "a\nb"


def test_random_answers_never_show_a_part_of_a_stop_string() -> None:
    random = np.random.default_rng(0)
    texts = ["a", "b", "c", "ab", "ba", "abc", "cab", "bb", "aa"]
    tokenizer, ended = words(*texts), 0
    for _ in range(600):
        tokens = random.integers(0, len(texts), 12).tolist()
        stops = [
            "".join(random.choice(list("abc"), random.integers(1, 6))) for _ in range(random.integers(1, 3))
        ]
        pieces, used, stop = spoken(tokenizer, tokens, stops)
        # the definition: the first token after which the text holds a stop string
        texts_so_far = ["".join(texts[token] for token in tokens[:count]) for count in range(1, 13)]
        first = next((i for i, text in enumerate(texts_so_far) if any(s in text for s in stops)), None)
        whole = texts_so_far[-1 if first is None else first]
        ends = [whole.index(s) for s in stops if s in whole]
        assert "".join(pieces) == whole[: min(ends, default=None)]
        assert (used, stop is None) == (12 if first is None else first + 1, first is None)
        assert stop is None or whole.startswith(stop, min(ends))
        ended += stop is not None
    assert 100 < ended < 590


def test_special_tokens() -> None:
    special = {"<end>": 7, "<box>": 8}
    told = Generation(stop_strings=("<end>", "stop"))
    assert StopStrings.of(told.stop_strings, special) == StopStrings(("stop",), frozenset({7}))
    mixed = Generation(stop_strings=("a<box>",))
    with pytest.raises(UserError, match="special token <box>") as error:
        StopStrings.of(mixed.stop_strings, special)
    assert error.value.code == 2
    shown = Generation(stop_strings=("a<box>",), keep_special=True)
    assert StopStrings.of(shown.stop_strings, special, keep_special=True).texts == ("a<box>",)


@pytest.mark.parametrize(
    ("tokens", "stops", "text"),
    [
        (["a", "<box>", "b", " more"], ["ab"], "ab more"),
        (["a", "<box>", "b", " more", "ab"], ["ab"], "ab more"),
        (["a", "<box>", "b", "bab", "ab"], ["ab"], "abb"),
        (["a", "<box>", "bab"], ["<box>b"], "a"),
        (["b", "ab", "<box>", "c"], ["b<box>"], "ba"),
        (["ab", "<box>"], ["<box>b", "never"], "ab"),
        ([" a", "<box>"], [], "a"),
        (["<0xE2>", "<0x82>", "<box>", "<0xAC>"], ["<box>x"], "€"),
        (["a", "<0xE2>", "<0x82>"], [], "a\ufffd\ufffd"),
    ],
)
def test_later_turns_know_the_text_without_special_tokens(tokens, stops, text) -> None:
    """A stop string that arises only without the special tokens did not end the answer, and cuts nothing."""
    tokenizer = words(*dict.fromkeys(each for each in tokens if not each.startswith("<0x")))
    tokenizer.add_special_tokens(["<box>"])
    ids = [tokenizer.token_to_id(token) for token in tokens]
    said = AnswerText(Detokenizer(tokenizer, keep_special=True), stops)
    used = 0
    while used < len(ids) and said.stop is None:
        said.step(ids[used])
        used += 1
    assert without_special(Detokenizer(tokenizer), ids[:used], said.stop, ["<box>"]) == text


def test_an_answer_and_its_stream(bundle: Path, pixels: np.ndarray) -> None:
    pipe = Pipeline.load(bundle, threads=1)
    whole = pipe.generate(pixels, QUESTION, max_new_tokens=40)
    stop = whole.text[12:15]
    answer = pipe.generate(pixels, QUESTION, max_new_tokens=40, stop=[stop, "never there"])
    assert (answer.finish, answer.stop, answer.text) == ("stop", stop, whole.text.split(stop)[0])
    assert answer.tokens == whole.tokens[: len(answer.tokens)] and len(answer.tokens) < 40
    assert stop in pipe.tokenizer.decode(answer.tokens) and stop not in pipe.tokenizer.decode(
        answer.tokens[:-1]
    )
    stream = pipe.stream(pixels, QUESTION, max_new_tokens=40, stop=stop)
    assert "".join(stream) == answer.text and stream.answer.tokens == answer.tokens
    assert whole.stop is None and whole.finish == "length"
    with pytest.raises(UserError, match="wrong stop"):
        pipe.generate(pixels, QUESTION, stop=[""])


def test_the_bundle_s_hold_unless_others_are_asked_for(bundle: Path, pixels: np.ndarray) -> None:
    plain = Pipeline.load(bundle, threads=1)
    whole = plain.generate(pixels, QUESTION, max_new_tokens=40)
    stop, other = whole.text[14:16], whole.text[5:7]
    manifest = json.loads((bundle / "bundle.json").read_text()) | {"generation": {"stop_strings": [stop]}}
    pipe = Pipeline(Bundle(bundle, type(plain.manifest).from_json(manifest)), plain._engines)
    assert pipe.generate(pixels, QUESTION, max_new_tokens=40).text == whole.text.split(stop)[0]
    assert pipe.generate(pixels, QUESTION, max_new_tokens=40, stop=other).text == whole.text.split(other)[0]
    assert pipe.generate(pixels, QUESTION, max_new_tokens=40, stop=[]).text == whole.text


def test_a_later_turn_knows_the_answer_without_it(bundle: Path, pixels: np.ndarray) -> None:
    pipe = Pipeline.load(bundle, threads=1)
    whole = pipe.generate(pixels, QUESTION, max_new_tokens=20)
    chat, stop = pipe.chat(), whole.text[6:9]
    chat.ask(QUESTION, pixels, max_new_tokens=20, stop=stop)
    second = chat.ask("Why?", max_new_tokens=8)
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "user", "assistant"]
    assert stop not in str(chat.turns[1])
    fresh = pipe.chat()
    fresh.turns = chat.turns[:2]
    fresh._shown = chat._shown
    assert fresh.ask("Why?", max_new_tokens=8).tokens == second.tokens


def test_on_the_command_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(bundle), QUESTION, "--max-new-tokens", "30"]
    assert cli.main(arguments) == 0
    whole = capsys.readouterr().out.removesuffix("\n")
    stop = whole[4:6]
    assert cli.main([*arguments, "--stop", stop, "--stop", "never there"]) == 0
    assert capsys.readouterr().out == whole.split(stop)[0] + "\n"
    assert cli.main([*arguments, "--stop", stop, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finish"], found["stop"]) == ("stop", stop)
