"""Processor files to bundle settings: chat templates against transformers' own rendering, image processors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from foveate.engines.errors import UserError
from foveate.export import chat, models
from foveate.export.models import llava
from foveate.runtime.image import preprocess
from foveate.runtime.prompt import ChatTokenizer, ImageSlot, Turn

CONTENT = "{% for part in m['content'] if part['type'] == 'image' %}<image>{{ newline }}{% endfor %}"
TEXT = "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
ENDS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    + CONTENT.replace("{{ newline }}", "{{ '\\n' }}")
    + TEXT
    + "{% if m['role'] == 'assistant' %}</s>{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nAnswer.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + CONTENT.replace("{{ newline }}", "{{ '\\n' }}")
    + TEXT
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOS = "{{ bos_token }}" + ENDS
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    + ENDS
)


def with_template(path, template):
    (path / "chat_template.jinja").write_text(template)
    return path


def ids_of(parts, path, turns):
    """Ids with the image token in the places of pictures, as transformers has them."""
    (path / "bundled.json").write_bytes(parts.files["tokenizer.json"])
    segments = ChatTokenizer(path / "bundled.json", parts.prompt).encode_turns(turns)
    slot = [parts.prompt["image_token_id"]]
    return [i for s in segments for i in (slot if isinstance(s, ImageSlot) else s.tolist())]


def messages_of(turns):
    return [
        {
            "role": turn.role,
            "content": [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.text}],
        }
        for turn in turns
    ]


TALK = [Turn("user", "What is it?", images=2), Turn("assistant", "A cat."), Turn("user", "Sure?", images=1)]
FORMS = {
    "llava": None,
    "assistant turns that end": ENDS,
    "chatml": CHATML,
    "bos": BOS,
    "no system": NO_SYSTEM,
}


TALKS = {"one turn": TALK[:1], "three turns": TALK, "system": [Turn("system", "Be brief."), *TALK]}


def loaded(copy, form):
    if FORMS[form]:
        with_template(copy, FORMS[form])
    return models.load(str(copy)), AutoProcessor.from_pretrained(copy)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("talk", ["one turn", "three turns"])
def test_prompts_equal_those_of_transformers(copy, form, talk):
    parts, processor = loaded(copy, form)
    theirs = processor.apply_chat_template(messages_of(TALKS[talk]), add_generation_prompt=True)
    talk = [(turn.role, turn.images, turn.text) for turn in TALKS[talk]]
    assert chat.render(parts.prompt, talk, True) == theirs.removeprefix("<s>")


@pytest.mark.parametrize(
    ("form", "talk"),
    [(form, talk) for form in FORMS for talk in TALKS if (form, talk) != ("no system", "system")],
)
def test_ids_equal_those_of_transformers(copy, form, talk):
    parts, processor = loaded(copy, form)
    text = processor.apply_chat_template(messages_of(TALKS[talk]), add_generation_prompt=True)
    theirs = processor.tokenizer(text, add_special_tokens=not text.startswith("<s>"))["input_ids"]
    assert ids_of(parts, copy, TALKS[talk]) == theirs


def test_roles_that_a_template_refuses_are_not_there(copy):
    assert set(loaded(copy, "no system")[0].prompt["roles"]) == {"user", "assistant"}
    assert set(loaded(copy, "chatml")[0].prompt["roles"]) == {"user", "assistant", "system"}


def test_without_a_template_the_format_is_llavas(copy):
    expected = models.load(str(copy)).prompt
    (copy / "chat_template.jinja").unlink()
    assert models.load(str(copy)).prompt == expected


REFUSED = {
    "syntax": "{% for m in messages %}",
    "pictures behind the text": "{% for m in messages %}{{ m['role'] }}: "
    + TEXT
    + CONTENT.replace("{{ newline }}", "")
    + "{% endfor %}",
    "no pictures": "{% for m in messages %}{{ m['role'] }}: " + TEXT + "{% endfor %}",
    "numbered turns": "{% for m in messages %}{{ loop.index }}: " + CONTENT + TEXT + "{% endfor %}",
    "text only": "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",
    "code": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_templates_that_pieces_cannot_express_are_refused(copy, template):
    with pytest.raises(UserError, match="chat template is not supported"):
        models.load(str(with_template(copy, template)))


def test_pieces_put_together():
    settings = chat.LLAVA | {"closing": {"assistant": "</s>"}}
    talk = [("system", 0, "a"), ("user", 2, "b"), ("assistant", 0, "c"), ("user", 0, None)]
    assert chat.render(settings, talk, True) == "a USER: <image>\n<image>\nb ASSISTANT: c</s>USER: ASSISTANT:"


@pytest.mark.parametrize("size", [(56, 56), (80, 61), (41, 200)])
def test_pictures_equal_those_of_transformers(copy, size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    theirs = AutoProcessor.from_pretrained(copy).image_processor(image, return_tensors="np")["pixel_values"]
    assert np.abs(preprocess(image, models.load(str(copy)).image) - theirs).max() < 1e-5


OLD = {"size": 56, "crop_size": 56, "do_center_crop": True, "image_processor_type": "CLIPImageProcessor"}
STEPS = {
    "numbers for sizes": (OLD, {"shortest_edge": 56, "crop": [56, 56]}),
    "height and width": (
        {"size": {"height": 56, "width": 56}, "do_center_crop": False},
        {"resize": [56, 56], "size": [56, 56]},
    ),
    "no normalization": ({**OLD, "do_normalize": False}, {"rescale": 1 / 255}),
}


@pytest.mark.parametrize(("config", "expected"), STEPS.values(), ids=STEPS)
def test_forms_of_image_configs(copy, edit_json, config, expected):
    edit_json(copy / "processor_config.json", image_processor=None)
    (copy / "preprocessor_config.json").write_text("{}")
    edit_json(copy / "preprocessor_config.json", **config)
    settings = models.load(str(copy)).image
    assert {key: settings[key] for key in expected} == expected
    assert ("mean" in settings) == ("do_normalize" not in config)
    preprocess(Image.new("RGB", (70, 90)), settings)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"crop_size": {"height": 28, "width": 28}}, "28"),
        ({"size": {"longest_edge": 56}}, "longest_edge"),
    ],
)
def test_other_image_processing_is_refused(copy, edit_json, change, named):
    edit_json(copy / "processor_config.json", image_processor=OLD | change)
    with pytest.raises(UserError, match=named):
        models.load(str(copy))


def test_tiny_has_settings_that_the_runtime_takes(tmp_path):
    parts = llava.tiny()
    assert preprocess(Image.new("RGB", (70, 90)), parts.image).shape == (1, 3, 56, 56)
    ids = ids_of(parts, tmp_path, [Turn("user", "hi", images=1)])
    assert ids[0] == parts.prompt["bos_id"]
    assert ids.count(parts.prompt["image_token_id"]) == 1
