"""Settings of wrong types are refused by the name of their key, whatever stands in their place."""

from __future__ import annotations

import copy as copies
import json
from pathlib import Path
from typing import Any

import pytest
from qwen_checkpoint import save_checkpoint as save_qwen

from foveate.engines.errors import UserError
from foveate.export import models

ODD = (None, "x", -1, 1.5, True, [], [None], {"a": None})
ADDED: dict[str, Any] = {
    "text_config": {"rope_scaling": None},
    "vision_config": {"fullatt_block_indexes": [1]},
    "quantization_config": None,
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
    "additional_special_tokens": ["<image>"],
    "chat_template": None,
    "video_processor": None,
}
"""Keys whose place is tried although the checkpoints of the tests lack them."""
VIDEO = {"size": {"shortest_edge": 512, "longest_edge": 4096}, "min_pixels": None, "max_pixels": None}
VIDEO |= {"max_video_tokens": None, "fps": 2, "min_frames": 4, "max_frames": 8}


@pytest.fixture(params=["llava", "qwen"])
def checkpoint(request, copy: Path, tmp_path: Path) -> Path:
    """A directory with every settings file that its family reads."""
    if request.param == "llava":
        (copy / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
        template = {"chat_template": (copy / "chat_template.jinja").read_text()}
        (copy / "chat_template.json").write_text(json.dumps(template))
        return copy
    save_qwen(tmp_path / "qwen")
    (tmp_path / "qwen" / "video_preprocessor_config.json").write_text(json.dumps(VIDEO))
    return tmp_path / "qwen"


def places(values: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all objects' keys in ``values``."""
    if not isinstance(values, dict):
        return []
    return [p for key, value in values.items() for p in [(*path, key), *places(value, (*path, key))]]


def replaced(values: dict[str, Any], path: tuple, value: Any) -> bytes:
    changed = inner = copies.deepcopy(values)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(changed).encode()


def test_no_value_of_a_settings_file_leads_to_a_traceback(checkpoint: Path):
    """Every value of every file is replaced by one of another type; the load passes or says what is wrong."""
    tried, refused = 0, 0
    for file in sorted(checkpoint.glob("*.json")):
        raw = file.read_bytes()
        values = json.loads(raw)
        if file.name in ("tokenizer.json", "model.safetensors.index.json"):
            continue
        for key, value in ADDED.items() if file.name != "special_tokens_map.json" else ():
            values = {key: value, **values}
            if isinstance(value, dict) and isinstance(values[key], dict):
                values[key] = {**value, **values[key]}
        for number, path in enumerate(places(values)):
            file.write_bytes(replaced(values, path, ODD[number % len(ODD)]))
            tried += 1
            try:
                models.load(str(checkpoint))
            except UserError as error:
                assert str(error).count(" | ") >= 2
                refused += 1
        file.write_bytes(raw)
    assert tried > 50 and refused > 15


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        *(("config.json", (key,), []) for key in ("text_config", "vision_config", "quantization_config")),
        *(("config.json", ("image_token_index",), value) for value in ("x", -1, 1.5, 10**30)),
        ("config.json", ("text_config", "rope_parameters"), "x"),
        ("config.json", ("text_config", "model_type"), [None]),
        *(("tokenizer_config.json", ("extra_special_tokens",), value) for value in (7, [None], {"a": None})),
        *(("tokenizer_config.json", ("added_tokens_decoder",), value) for value in ("x", {"0": None})),
        ("tokenizer_config.json", ("tokenizer_class",), 7),
        *(("processor_config.json", ("chat_template",), value) for value in (7, [None], {"default": None})),
        ("processor_config.json", ("image_processor",), "x"),
        ("processor_config.json", ("image_processor", "image_processor_type"), 7),
    ],
)
def test_the_key_is_named(copy: Path, file: str, path: tuple[str, ...], value: Any):
    values = json.loads((copy / file).read_text())
    (copy / file).write_bytes(replaced(values, path, value))
    with pytest.raises(
        UserError, match=rf"{'.'.join(path)}.* in {file} has a wrong type \| got .*, expected "
    ):
        models.load(str(copy))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"stop_strings": "\\ud800"}', b"", b"[]", b"\xff\xfe\xff"]
)
def test_damaged_json(copy: Path, content: bytes):
    (copy / "generation_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"generation_config.json is damaged"):
        models.load(str(copy))


def test_sizes_beyond_any_model_are_refused_before_work_grows_with_them(checkpoint: Path):
    """Every whole number of every file becomes a huge one: the load passes or says what is wrong."""
    refused = []
    for file in sorted(checkpoint.glob("*config.json")):
        raw = file.read_bytes()
        values = json.loads(raw)
        for path in places(values):
            value = values
            for key in path:
                value = value[key]
            if type(value) is not int:
                continue
            file.write_bytes(replaced(values, path, 10**30))
            try:
                models.load(str(checkpoint))
            except UserError as error:
                assert str(error).count(" | ") >= 2
                refused.append(path[-1])
        file.write_bytes(raw)
    depth = "depth" if "depth" in refused else "num_hidden_layers"
    assert {"num_hidden_layers", depth, "hidden_size", "intermediate_size", "patch_size"} <= set(refused)
