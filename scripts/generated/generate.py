"""``make generated``: write every page and data file that is derived from the code.

``tests/repository/test_generated.py`` compares them. In README only the text between
``<!-- generated: NAME -->`` and ``<!-- end -->`` is written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.bundling import json_schema
from foveate.export.graphs.assemble import missing
from foveate.export.keys import checkpoint_keys
from foveate.export.pruning.method import Method
from foveate.export.spec import ModelSpec
from generated import api_page, plan_methods, plan_models

__all__ = ["FILES", "expected", "main"]

ROOT = Path(__file__).parents[2]

_TAPS = {
    "cls_attention": "class-token attention",
    "cls_attention_heads": "class-token attention per head",
    "cls_feature": "a class token",
    "clip_image": "CLIP's joint space",
    "features": "patch features",
    "hidden": "inner layers",
    "keys": "attention keys",
    "layers": "merging inside its layers",
    "received_attention": "received attention",
}
"""Names of the taps in README."""


def main() -> None:
    for name in FILES:
        path, text = ROOT / name, expected(name)
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


def expected(name: str) -> str:
    """Return the text that the file ``name`` (a key of ``FILES``) must have."""
    return FILES[name]((ROOT / name).read_text(encoding="utf-8"))


def _readme(text: str) -> str:
    for name, block in {"families": _families, "methods": _methods}.items():
        pattern = rf"(<!-- generated: {name} -->\n\n).*?(\n\n<!-- end -->)"
        text, found = re.subn(pattern, lambda m: m[1] + block() + m[2], text, flags=re.DOTALL)  # noqa: B023
        if found != 1:
            raise UserError(f"README.md has {found} blocks {name} | expected 1 | put its two comments back")
    return text


def _methods() -> str:
    lines = ["| method | where | what it keeps | reads the question | source |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_method(methods.load(name)) for name in methods.names())])


def _method(method: Method) -> str:
    name, document = method.name, sys.modules[type(method).__module__].__doc__ or ""
    first = re.match(rf"{name}: (.+)\.\n", document)
    if not first:
        raise UserError(
            f"export/methods/{name}.py does not say what it keeps | got {document.partition(chr(10))[0]!r}, "
            f'expected "{name}: ... ." as the first line of its docstring | write that line'
        )
    paper = re.search(r"arXiv\s+(\d{4}\.\d{4,5})", document)
    source = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
    source = f"our reading of {source}" if method.our_reading else source
    cells = (f"`{name}`", _where(method), first[1], "yes" if method.reads_question else "", source)
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _where(method: Method) -> str:
    places = {"encoder": method.encoder_merger, "pre-LLM": method.pre_llm, "in-LLM": method.in_llm}
    return ", then ".join(place for place, found in places.items() if found)


def _families() -> str:
    lines = ["| family | `--model` | methods that are refused, and what it lacks for them |", "|---|---|---|"]
    for name in models.families():
        family = models.family(name)
        known = ", ".join(f"`{checkpoint}`" for checkpoint in family.CHECKPOINTS)
        lines.append(f"| {_title(name)} (`{name}`) | {known} | {_refused(family.tiny().spec) or 'none'} |")
    return "\n".join(lines)


def _title(family: str) -> str:
    title = re.match(rf"(.+?) \(model_type ``{family}``\)", models.family(family).__doc__ or "")
    if not title:
        raise UserError(
            f"export/models/{family}.py does not say its title | expected a docstring that begins with "
            f'"TITLE (model_type ``{family}``)" | write it'
        )
    return title[1]


def _keys(_: str) -> str:
    return checkpoint_keys.markdown({_title(name): models.family(name).KEYS for name in models.families()})


def _refused(spec: ModelSpec) -> str:
    found = {name: missing(spec, methods.load(name)) for name in methods.names()}
    return "; ".join(
        f"`{name}`: {', '.join(_TAPS[tap] for tap in lacks)}" for name, lacks in found.items() if lacks
    )


def _table_of_methods(_: str) -> str:
    return f"{_rows(plan_methods.table())}\n"


def _table_of_models(_: str) -> str:
    parts = (f" {json.dumps(name)}: {_rows(rows, ' ')}" for name, rows in plan_models.table().items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rows(table: Mapping[str, Any], indent: str = "") -> str:
    """Return an object as JSON, with a line for each value."""
    rows = (f"{indent} {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


FILES: dict[str, Callable[[str], str]] = {
    "README.md": _readme,
    "docs/api.md": lambda _: api_page.page(),
    "docs/bundle.schema.json": lambda _: json_schema.text(),
    "docs/checkpoint-keys.md": _keys,
    "jetson/data/methods.json": _table_of_methods,
    "jetson/data/models.json": _table_of_models,
}
"""Path of a written file -> the function that derives its text from the code and from the current text."""
