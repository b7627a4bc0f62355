"""The JSON Schema of ``bundle.json``, made from the classes of ``runtime.bundle.manifest``."""

from __future__ import annotations

import json
from dataclasses import MISSING, is_dataclass
from typing import Any, Literal, get_args, get_origin

from foveate.runtime.bundle.manifest import FORMAT, Manifest
from foveate.runtime.bundle.typed_json import default_of, field_types, is_union

__all__ = ["bundle_schema", "text"]

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def bundle_schema() -> dict[str, Any]:
    """Return the schema. Keys that it does not name are allowed, as readers leave them out."""
    parts: dict[str, Any] = {}
    for kind in _classes(Manifest, []):
        parts[kind.__name__] = _object(kind)
    whole = parts.pop(Manifest.__name__)
    whole["properties"]["format"] = {"const": FORMAT}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"bundle.json of foveate, format {FORMAT}",
        **whole,
        "$defs": dict(sorted(parts.items())),
    }


def text() -> str:
    """Return the schema as the text of ``docs/bundle.schema.json``."""
    return json.dumps(bundle_schema(), indent=1) + "\n"


def _object(kind: type) -> dict[str, Any]:
    types = field_types(kind)
    required = [
        name
        for name, (field, _) in types.items()
        if default_of(field) is MISSING or field.metadata.get("always")
    ]
    return {
        "description": str(kind.__doc__).partition("\n")[0],
        "type": "object",
        "required": required,
        "properties": {name: _schema(_type(field, found)) for name, (field, found) in types.items()},
    }


# The types are values here, which typing has no name for: hence Any in the functions below.
def _type(field: Any, found: Any) -> Any:
    """Return what a field must hold: its type, or the one that it is checked against."""
    return field.metadata.get("checked", found)


def _classes(kind: Any, known: list[Any]) -> list[Any]:
    """Return ``known`` and the dataclasses that occur in ``kind``, each once."""
    if isinstance(kind, type) and is_dataclass(kind):
        if kind in known:
            return known
        known = [*known, kind]
        inner = [_type(field, found) for field, found in field_types(kind).values()]
    else:
        inner = [each for each in get_args(kind) if get_origin(kind) is not Literal]
    for each in inner:
        known = _classes(each, known)
    return known


def _schema(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if is_union(kind):
        return {"anyOf": [_schema(each) for each in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if origin is tuple and inner[-1] is Ellipsis:
        return {"type": "array", "items": _schema(inner[0])}
    if origin is tuple:
        items = [_schema(each) for each in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    return {"type": _TYPES[kind]} if kind in _TYPES else {}
