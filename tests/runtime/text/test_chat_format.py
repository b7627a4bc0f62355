"""Pieces put together by hand. tests/export/settings/test_chat_template.py compares with chat templates."""

from __future__ import annotations

from datetime import datetime

import pytest

from foveate.engines.errors import UserError
from foveate.runtime.text.chat_format import LIMITS, date_piece, render
from foveate.runtime.text.turns import IMAGE, Turn

LLAVA = {
    "before": "",
    "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},
    "image": "<image>\n",
    "order": "images first",
    "after_text": " ",
    "end": "",
    "generation": "ASSISTANT:",
}
TALK = [Turn("system", "a"), Turn("user", "b", 2), Turn("assistant", "c"), Turn("user")]


def text(settings, turns, **options):
    return "".join(piece for piece, _ in render(settings, turns, **options))


def test_pieces_are_put_together():
    settings = LLAVA | {"before": "Hello. ", "closing": {"assistant": "</s>"}}
    whole = "a USER: <image>\n<image>\nb ASSISTANT: c</s>USER: ASSISTANT:"
    assert text(settings, TALK) == whole
    assert text(settings, TALK[1:]) == "Hello. " + whole.removeprefix("a ")
    assert text(settings, TALK, generation=False) == whole.removesuffix("ASSISTANT:")


def test_words_are_told_from_the_formats_own_text():
    pieces = render(LLAVA, [Turn("user", "<image>", 1)])
    assert pieces == [
        *(("USER: ", True), ("<image>\n", True), ("<image>", False), (" ", True), ("ASSISTANT:", True)),
    ]


def test_images_stand_where_the_format_has_them():
    turns = [Turn("user", parts=["a", IMAGE, "b"])]
    assert text(LLAVA, turns) == "USER: <image>\na b ASSISTANT:"
    assert text(LLAVA | {"order": "given"}, turns) == "USER: a <image>\nb ASSISTANT:"


@pytest.mark.parametrize("parts", [["a", IMAGE], [IMAGE, "a", "b"], ["a", IMAGE, "b"]])
def test_bundles_that_do_not_say_the_order_refuse_other_orders(parts):
    old = {key: value for key, value in LLAVA.items() if key != "order"}
    assert text(old, [Turn("user", "a", 1)]) == "USER: <image>\na ASSISTANT:"
    with pytest.raises(UserError, match="does not say where images stand between words"):
        render(old, [Turn("user", parts=parts)])


@pytest.mark.parametrize(
    "turn",
    [Turn("assistant", "a", 1), Turn("system", parts=["a", "b"]), Turn("assistant"), Turn("system", None, 1)],
)
def test_other_turns_are_one_text(turn):
    with pytest.raises(UserError, match="is one text"):
        render(LLAVA, [turn])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"left": None, "right": None}, "<image>\na <image>\n "),
        ({"left": "\n"}, "<image>\n a \n <image>\n\t "),
        ({"left": None, "right": None, "whole": True}, "<image>\n a \n <image>"),
        ({"right": " \t", "whole": True}, "<image>\n a \n <image>\n"),
        ({"left": "<", "whole": True}, "image>\n a \n <image>\n\t "),
    ],
)
def test_blanks_are_taken_off_texts_or_off_the_whole_turn(rule, expected):
    settings = LLAVA | {"order": "given", "strip": {"user": rule}}
    turn = Turn("user", parts=[IMAGE, " a \n", IMAGE, "\t"])
    assert text(settings, [turn]).removeprefix("USER: ").removesuffix("ASSISTANT:") == expected


def test_reasoning_is_cut_out_of_answers_that_have_some():
    settings = LLAVA | {
        "strip": {"assistant": {"right": None}},
        "reasoning": {"assistant": {"end": "</think>", "left": "\n"}},
    }
    for answer, left in (
        ("<think>why</think>\n\n It. ", " It."),
        ("a</think>b</think>\nc", "c"),
        ("\nplain ", "\nplain"),
        ("</think>", ""),
    ):
        turns = [Turn("user", "</think> stays"), Turn("assistant", answer)]
        assert text(settings, turns, generation=False) == f"USER: </think> stays ASSISTANT: {left} "


def test_dates_are_filled_in_the_formats_own_text_only():
    form = '%H:%M, %d %b %Y {x} "q"'
    settings = LLAVA | {"before": f"It is {date_piece(form)}. "}
    turns, now = [Turn("user", date_piece("%Y"))], datetime(2026, 1, 2, 3, 4)
    assert text(settings, turns, now=now) == (
        'It is 03:04, 02 Jan 2026 {x} "q". USER: {{ strftime_now("%Y") }} ASSISTANT:'
    )
    assert str(datetime.now().year) in text(LLAVA | {"before": date_piece("%Y")}, [])


BROKEN = {
    "user first": ["assistant", "user"],
    "user last": ["user", "assistant"],
    "system first": ["user", "system", "user"],
    "one answer": ["user", "assistant", "assistant", "user"],
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits(limit):
    settings = LLAVA | {"limits": [limit]}
    for name, roles in {**BROKEN, "fine": ["system", "user", "assistant", "user"]}.items():
        turns = [Turn(role, "a") for role in roles]
        if name == limit:
            with pytest.raises(UserError, match="cannot be followed in conversations that"):
                render(settings, turns)
        else:
            render(settings, turns)
    render(settings, [])


def test_unknown_roles_are_refused():
    with pytest.raises(UserError, match="did you mean user"):
        render(LLAVA, [Turn("users", "a")])
