"""The types of settings that have a structure or that numbers are computed from.

A checkpoint with a setting of another type is refused at the start, with the name of the key. Ranges and
meanings are checked by the code that reads a setting. Null counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source

__all__ = ["check"]


@dataclass(frozen=True)
class _Type:
    """A type of a setting. ``name`` is its name in messages; ``fits`` tells whether a value has it."""

    name: str
    fits: Callable[[Any], bool]


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, dict) and _texts(each, "name", "template") for each in value)
    return isinstance(value, str) or (isinstance(value, dict) and _texts(value, *value))


def _texts(value: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(value.get(key), str) for key in keys)


_OBJECT = _Type("an object", lambda value: isinstance(value, dict))
_TEXT = _Type("a text", lambda value: isinstance(value, str))
_NUMBER = _Type("a number", lambda value: type(value) in (int, float))
_ID = _Type("a token id", lambda value: type(value) is int and 0 <= value < 2**31)
_COUNTS = _Type(
    "a list of whole numbers",
    lambda value: isinstance(value, list) and all(type(each) is int for each in value),
)
_TOKEN = _Type("a token", lambda value: isinstance(value, dict) and _is_token(value))
_TOKENS = _Type(
    "tokens",
    lambda value: (
        isinstance(value, list | dict)
        and all(map(_is_token, value.values() if isinstance(value, dict) else value))
    ),
)
_TEMPLATE = _Type("a template or templates by name", _is_template)

_IMAGES = {"image_processor_type": _TEXT, "feature_extractor_type": _TEXT}
_VIDEOS = {
    "size": _OBJECT,
    **dict.fromkeys(("size.shortest_edge", "size.longest_edge", "min_pixels", "max_pixels"), _NUMBER),
    **dict.fromkeys(("max_video_tokens", "fps", "min_frames", "max_frames"), _NUMBER),
}
_ROPE = {"rope_parameters": _OBJECT, "rope_scaling": _OBJECT}
_ROPE |= {f"{key}.mrope_section": _COUNTS for key in _ROPE}
_TYPES: dict[str, dict[str, _Type]] = {
    "config.json": {
        "model_type": _TEXT,
        **dict.fromkeys(("text_config", "vision_config", "quantization_config"), _OBJECT),
        **dict.fromkeys(("image_token_index", "image_token_id", "video_token_id"), _ID),
        **_ROPE,
        "text_config.model_type": _TEXT,
        **{f"text_config.{key}": kind for key, kind in _ROPE.items()},
        "vision_config.fullatt_block_indexes": _COUNTS,
    },
    "tokenizer_config.json": {
        "added_tokens_decoder": _OBJECT,
        "added_tokens_decoder.*": _TOKEN,
        **dict.fromkeys(("extra_special_tokens", "additional_special_tokens"), _TOKENS),
        "tokenizer_class": _TEXT,
        "chat_template": _TEMPLATE,
    },
    "processor_config.json": {
        "chat_template": _TEMPLATE,
        **dict.fromkeys(("image_processor", "video_processor"), _OBJECT),
        **{f"image_processor.{key}": kind for key, kind in _IMAGES.items()},
        **{f"video_processor.{key}": kind for key, kind in _VIDEOS.items()},
    },
    "preprocessor_config.json": _IMAGES,
    "video_preprocessor_config.json": _VIDEOS,
    "chat_template.json": {"chat_template": _TEMPLATE},
}
"""The type of each key by file and path, outer objects first; "*" stands for every key of an object."""


def check(source: Source) -> None:
    """Raise UserError for the first setting of a wrong type."""
    for file, types in _TYPES.items():
        values = source.config if file == "config.json" else source.json(file) or {}
        for path, kind in types.items():
            for where, value in _found(values, path.split(".")):
                if not kind.fits(value):
                    raise UserError(
                        f"{source.label}: {where} in {file} has a wrong type "
                        f"| got {_short(value)}, expected {kind.name} | repair it in a copy of the checkpoint"
                    )


def _found(values: dict[str, Any], path: list[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the value of each setting at ``path`` that is not null."""
    first, *rest = path
    for key in list(values) if first == "*" else [first]:
        value = values.get(key)
        if rest and isinstance(value, dict):
            yield from _found(value, rest, f"{before}{key}.")
        elif not rest and (value is not None or first == "*"):
            yield before + key, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
