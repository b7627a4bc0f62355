"""Chat templates become pieces whose ids equal those of transformers' processors.

A template that pieces cannot express is refused.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from prompts import INTERLEAVED, NOW, expected, ids_of

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Directory
from foveate.export.settings import chat_format, chat_proof, prompt
from foveate.export.settings.chat_template import ChatTemplate
from foveate.runtime.text.turns import IMAGE, Turn

IMAGES = "{% for part in m['content'] if part['type'] == 'image' %}<image>{{ '\n' }}{% endfor %}"
TEXTS = "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(content: str, loop: str = "messages") -> str:
    return f"{{% for m in {loop} %}}<|im_start|>{{{{ m['role'] }}}}\n{content}<|im_end|>\n{{% endfor %}}{ASK}"


def say(role: str, change: str, start: str = "") -> str:
    """Interleaved content in which the texts of ``role`` go through ``change``."""
    return INTERLEAVED.replace(
        "{{ part['text'] }}",
        f"{{% set content = part['text'] %}}{{% if m['role'] == '{role}' %}}{start}{{{{ content{change} }}}}"
        "{% else %}{{ content }}{% endif %}",
    )


ENDS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    + IMAGES
    + TEXTS
    + "{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% endfor %}" + ENDS
)
CUT = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1]STRIP %}{% endif %}"
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% set turn = loop.index0 %}{% set final = loop.last %}<|im_start|>{{ m['role'] }}\n"
    + INTERLEAVED.replace(
        "{{ part['text'] }}",
        "{% set content = part['text'] %}{% if m['role'] == 'assistant' %}{% set thought = '' %}"
        "{% if '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if turn > ns.last and (final or thought) %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
        "{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}{% else %}{{ content }}{% endif %}",
    )
    + "<|im_end|>\n{% endfor %}"
    + ASK
    + "{% if add_generation_prompt and enable_thinking is defined %}<think>\n\n</think>\n\n{% endif %}"
)
WHOLE = (
    "{% macro content(m) %}"
    + INTERLEAVED
    + "{% endmacro %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ content(m) | trim }}<|im_end|>\n{% endfor %}" + ASK
)
FORMS = {
    "llava": None,
    "assistant turns that end": ENDS,
    "no system": NO_SYSTEM,
    "chatml": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nAnswer.<|im_end|>\n{% endif %}"
    + chatml(IMAGES + TEXTS),
    "interleaved": chatml(INTERLEAVED),
    "texts first joined": chatml(IMAGES + TEXTS.replace("{{ part", "{{ ' ' if not loop.first }}{{ part")),
    "trim": chatml(INTERLEAVED.replace("part['text']", "part['text'] | trim")),
    "strip and images first": chatml(IMAGES + TEXTS.replace("part['text']", "part['text'].strip()")),
    "trim all": WHOLE,
    "trim the user": chatml(say("user", " | trim")),
    "trim the system turn": chatml(say("system", ".strip()")),
    "lstrip the assistant": chatml(say("assistant", ".lstrip()")),
    "rstrip newlines": chatml(say("assistant", ".rstrip('\n')")),
    "cut": chatml(say("assistant", "", CUT.replace("STRIP", ""))),
    "cut without asking": chatml(say("assistant", ".split('</think>')[-1]")),
    "cut and lstrip newlines": chatml(say("assistant", "", CUT.replace("STRIP", ".lstrip('\n')"))),
    "cut and strip": chatml(say("assistant", "", CUT.replace("STRIP", " | trim"))),
    "cut, and strip all": chatml(say("assistant", ".strip()", CUT.replace("STRIP", ".lstrip('\n')"))),
    "other tag": chatml(say("assistant", ".split('[/THINK]')[-1].lstrip()")),
    "qwen3": QWEN3,
    "date": "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y, \"%H\"') %}{% else %}"
    "{% set day = '26 Jul 2024' %}{% endif %}Today is {{ day }}.\n" + chatml(INTERLEAVED),
    "system turn first": "{% if messages[0]['role'] == 'system' %}[{{ messages[0]['content'][0]['text'] }}]\n"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    + chatml(INTERLEAVED, "rest"),
    "end of the last answer left out": chatml(INTERLEAVED).replace(
        "<|im_end|>\n{% endfor %}{% if add",
        "{% if not (loop.last and m['role'] == 'assistant') %}<|im_end|>\n{% endif %}{% endfor %}{% if add",
    ),
}

WORDS = [
    "What is it?",
    " blanks \n",
    "\n\nlines\n\n",
    "\u3000a\t",
    "<think>\nwhy\n</think>\n\nA cat.",
    "a</think> b",
]
WORDS += ["", "</think>\n", "a[/THINK] b [/THINK]\n c "]


def talks() -> dict[str, list[Turn]]:
    """Conversations that end with the user's turn."""
    made = {}
    for number, word in enumerate(WORDS):
        turns = [Turn("user", word, 2), Turn("assistant", word), Turn("user", f"{word}?", 1)]
        made[f"three turns, {number}"] = turns
        made[f"system, {number}"] = [
            Turn("system", word),
            *turns,
            Turn("assistant", "Yes."),
            Turn("user", "Why?"),
        ]
    return made


INTERLEAVED_TALKS = [
    [Turn("user", parts=parts), Turn("assistant", "It."), Turn("user", parts=parts[::-1])]
    for parts in (
        ["Is ", IMAGE, " like ", IMAGE, "?"],
        [" a ", IMAGE, "\n", IMAGE, " b\n"],
        ["a", "b", IMAGE],
        [IMAGE, IMAGE, "a", IMAGE],
    )
]


@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_those_of_transformers(place, form):
    ours, theirs = place(FORMS[form])
    for name, turns in talks().items():
        if "system" not in ours.settings["roles"] and name.startswith("system"):
            continue
        assert ids_of(ours, turns) == expected(theirs, turns), name
        if "user last" not in ours.settings.get("limits", ()):
            more = [*turns, Turn("assistant", "Yes.")]
            assert ids_of(ours, more, False) == expected(theirs, more, False), name


@pytest.mark.parametrize("form", FORMS)
def test_interleaved_content_equals_that_of_transformers(place, form):
    ours, theirs = place(FORMS[form])
    for turns in INTERLEAVED_TALKS:
        if form == "texts first joined":  # pieces cannot say that
            with pytest.raises(UserError, match="where images stand between words"):
                ours.encode_turns(turns)
        else:
            assert ids_of(ours, turns) == expected(theirs, turns)


SETTINGS = {
    "llava": {"order": "images first"},
    "interleaved": {"order": "given"},
    "trim": {"strip": {role: {"left": None, "right": None} for role in ("user", "assistant", "system")}},
    "trim the user": {"strip": {"user": {"left": None, "right": None}}, "order": "given"},
    "rstrip newlines": {"strip": {"assistant": {"right": "\n"}}},
    "cut": {"reasoning": {"assistant": {"end": "</think>"}}},
    "cut and lstrip newlines": {"reasoning": {"assistant": {"end": "</think>", "left": "\n"}}},
    "qwen3": {"reasoning": {"assistant": {"end": "</think>", "left": "\n"}}, "limits": ["user last"]},
    "date": {"before": 'Today is {{ strftime_now("%d %b %Y, \\"%H\\"") }}.\n', "limits": ["system first"]},
    "system turn first": {"limits": ["system first"]},
}


@pytest.mark.parametrize("form", SETTINGS)
def test_settings_say_what_the_template_does(place, form):
    settings = place(FORMS[form])[0].settings
    assert {key: settings[key] for key in SETTINGS[form]} == SETTINGS[form]
    if form in ("llava", "interleaved"):
        assert not {"strip", "reasoning", "limits"} & settings.keys()


def test_roles_that_a_template_refuses_are_not_there(place):
    assert set(place(NO_SYSTEM)[0].settings["roles"]) == {"user", "assistant"}


def test_a_date_is_that_of_the_conversation(place):
    ours, _ = place(FORMS["date"])
    tokens = [ours.encode_turns([Turn("user", "hi")], now=datetime(2026, 1, day)) for day in (8, 9)]
    texts = [ours.decode(run[0]) for run in tokens]
    assert texts[0].startswith('Today is 08 Jan 2026, "00".') and "09 Jan" in texts[1]
    typed = ours.encode_turns([Turn("user", '{{ strftime_now("%Y") }}')], now=NOW)
    assert '{{ strftime_now("%Y") }}' in ours.decode(typed[0])  # somebody's words stay as they are


@pytest.mark.parametrize(
    ("limit", "roles"),
    [("qwen3", ["user", "assistant"]), ("system turn first", ["user", "assistant", "system", "user"])],
)
def test_conversations_beyond_the_limits_are_refused(place, limit, roles):
    ours, _ = place(FORMS[limit])
    with pytest.raises(UserError, match="chat template cannot be followed in conversations that"):
        ours.encode_turns([Turn(role, "hi") for role in roles])


def test_without_a_template_the_format_is_llavas(copy, place):
    expected = place(None)[0].settings
    (copy / "chat_template.jinja").unlink()
    raw = (copy / "tokenizer.json").read_bytes()
    assert prompt.prompt_settings(Directory(copy), raw, 3, [2], None) == expected


REFUSED = {
    "syntax": ("{% for m in messages %}", "no Jinja template"),
    "images behind the text": (
        "{% for m in messages %}{{ m['role'] }}: " + TEXTS + IMAGES + "{% endfor %}",
        "of an image alone|which does not hold one",
    ),
    "no images": ("{% for m in messages %}{{ m['role'] }}: " + TEXTS + "{% endfor %}", "does not hold one"),
    "numbered turns": (
        "{% for m in messages %}{{ loop.index }}: " + INTERLEAVED + "{% endfor %}",
        "no repetition",
    ),
    "text only": (
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",
        "stops at a conversation",
    ),
    "code": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "stops at a conversation of user"),
    "capitals": (chatml(say("user", ".upper()")), "pieces make"),
    "a word replaced": (chatml(say("user", ".replace('cat', 'dog')")), "pieces make"),
    "cut at the first tag": (chatml(say("assistant", ".split('</think>', 1)[-1]")), "pieces make"),
    "a tag taken out": (chatml(say("assistant", ".replace('</think>', '')")), "pieces make"),
    "other reply to a word": (
        chatml(INTERLEAVED + "{% if m['content'][-1]['text'].startswith('/no_think') %} {% endif %}"),
        "stops at|pieces make",
    ),
    "changed date": (
        "{{ strftime_now('%d').lstrip('0') }}" + chatml(INTERLEAVED),
        "pieces make",
    ),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_templates_that_pieces_cannot_express_are_refused(place, template, reason):
    with pytest.raises(UserError, match=f"chat template is not supported.*({reason}).*chat_template.jinja"):
        place(template)


def test_the_proof_sees_every_setting(monkeypatch):
    """Each setting that a form needs is needed: without it the proof fails."""
    for form, wanted in SETTINGS.items():
        if FORMS[form] is None or not {"strip", "reasoning"} & wanted.keys():
            continue
        template = ChatTemplate(FORMS[form], {})
        settings = chat_format._derive(template, "<image>")
        for key in {"strip", "reasoning"} & settings.keys():
            less = {name: value for name, value in settings.items() if name != key}
            talks = chat_proof.conversations(template)
            with pytest.raises(chat_proof.MismatchError):
                chat_proof.prove(template, less, talks)


def marked(name: str) -> str:
    return f"[{name}]" + chatml(INTERLEAVED)


FILES = {
    "processor_config.json": lambda path: edit(path, chat_template=marked("processor_config.json")),
    "chat_template.json": lambda path: path.write_text(
        json.dumps({"chat_template": marked("chat_template.json")})
    ),
    "chat_template.jinja": lambda path: path.write_text(marked("chat_template.jinja")),
}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("first", range(len(FILES)))
def test_the_template_file_that_transformers_takes_counts(copy, place, first):
    (copy / "chat_template.jinja").unlink()
    for name in list(FILES)[first:]:
        FILES[name](copy / name)
    edit(copy / "tokenizer_config.json", chat_template=marked("tokenizer_config.json"))
    ours, theirs = place(None)
    turns = [Turn("user", "What?", 1)]
    assert ids_of(ours, turns) == expected(theirs, turns)
    assert f"[{list(FILES)[first]}]" in theirs.chat_template


def test_a_template_of_the_tokenizer_is_the_last_resort(copy, place):
    (copy / "chat_template.jinja").unlink()
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": marked("it")}]
    ours, theirs = place(None, chat_template=several)
    theirs.chat_template = marked("it")
    turns = [Turn("user", "What?", 1)]
    assert ids_of(ours, turns) == expected(theirs, turns)
    with pytest.raises(UserError, match=r"none of its chat templates is the default.*has tool_use"):
        place(None, chat_template=several[:1])
