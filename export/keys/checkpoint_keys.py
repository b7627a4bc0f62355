"""The check of every key in a checkpoint's settings files: used, irrelevant, refused, or reported as unknown.

``config_keys``, ``processor_keys`` and ``generation_keys`` hold the tables. ``KEYS`` of a family names its
tables, and ``check`` checks a checkpoint against them. A key that is in no table is named in a warning, one
line per file. A refused key stops the build unless its value changes nothing. ``make generated`` writes
docs/checkpoint-keys.md from the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.export.keys import config_keys, processor_keys
from foveate.export.keys.key_table import FamilyKeys, Table
from foveate.runtime.cli.options import say

__all__ = ["check", "check_clip", "markdown", "places"]


@dataclass(frozen=True)
class Place:
    """An object in one of a checkpoint's files.

    ``path`` leads to it from the top of the file. ``values`` are checked against ``table``.
    """

    file: str
    path: tuple[str, ...]
    values: dict[str, Any]
    table: Table


def check(source: Source, keys: FamilyKeys) -> None:
    """Warn about keys that are in no table. Raises UserError for a refused key whose value matters."""
    _check(source, places(source, keys))


def check_clip(source: Source) -> None:
    """Check the config of a vision tower's CLIP checkpoint. Its other settings files are not read."""
    _check(source, _configs(source, config_keys.CLIP))


def places(source: Source, keys: FamilyKeys) -> Iterator[Place]:
    """Yield every object in the files of ``source`` that has a table."""
    yield from _configs(source, keys)
    for (file, *path), table in processor_keys.tables(keys).items():
        values: Any = source.json(file) or {}
        for key in path:
            values = values.get(key)
        if isinstance(values, dict):
            yield Place(file, tuple(path), values, table)


def _configs(source: Source, keys: FamilyKeys) -> Iterator[Place]:
    """Yield ``config.json`` and the objects nested in it."""
    config, file = source.config, "config.json"
    text = config.get("text_config") or {}
    inner = config_keys.TEXT.get(str(text.get("model_type") or keys.text), {})
    top = keys.top
    if keys.flat:
        top = (config_keys.beside(inner) if text else inner) | top
    yield Place(file, (), config, top)
    for name, values, table in (
        ("text_config", text, inner),
        ("vision_config", config.get("vision_config") or {}, keys.vision),
    ):
        if table:
            yield Place(file, (name,), values, table)
            for key, nested in config_keys.NESTED.items():
                if isinstance(values.get(key), dict):
                    yield Place(file, (name, key), values[key], nested[name])
    if keys.flat and not text:
        for key, nested in config_keys.NESTED.items():
            if isinstance(config.get(key), dict):
                yield Place(file, (key,), config[key], nested["text_config"])


def _check(source: Source, found: Iterator[Place]) -> None:
    unknown: dict[str, list[str]] = {}
    for place in found:
        for name, value in place.values.items():
            key, where = place.table.get(name), ".".join((*place.path, name))
            if key is None:
                unknown.setdefault(place.file, []).append(where)
            elif key.refuses(value):
                raise UserError(
                    f"{source.label}: {where} in {place.file} is not supported "
                    f"| got {_short(value)}, expected {key.expected} ({key.why}) | use another checkpoint"
                )
    for file, names in unknown.items():
        say(
            f"warning: {source.label}: foveate does not know what {', '.join(names)} in {file} "
            f"{'means' if len(names) == 1 else 'mean'}, and ignores {'it' if len(names) == 1 else 'them'}. "
            "Answers may differ from those of transformers"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def markdown(families: Mapping[str, FamilyKeys]) -> str:
    """Return the text of docs/checkpoint-keys.md. ``families`` are given by their titles."""
    lines = [config_keys.INTRODUCTION]
    for title, table in (config_keys.sections(families) | processor_keys.sections()).items():
        lines += ["", f"## {title}", "", "| key | what | why |", "|---|---|---|"]
        lines += [f"| `{name}` | {table[name].status} | {table[name].told} |" for name in sorted(table)]
    return "\n".join(lines) + "\n"
