"""``docs/api.md``: the public names of ``foveate.runtime``, from their signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

from foveate import runtime

__all__ = ["page"]

_HEAD = """# Python API

Written by `make generated` from the docstrings; do not edit. These names of `foveate.runtime` are public:
`{names}`. Everything else may change between versions.

```python
from foveate.runtime import Pipeline
```

Errors that you can fix yourself are `foveate.engines.errors.UserError`. Shapes are in brackets:
`int64 [R]` is an array with one axis of length R.
"""


def page() -> str:
    """Return the page as Markdown."""
    names = sorted(runtime.__all__)
    parts = [_HEAD.format(names="`, `".join(names))]
    for name in names:
        parts += _class(getattr(runtime, name))
    return "\n".join(parts)


def _class(kind: type) -> Iterator[str]:
    yield f"## {kind.__name__}\n"
    yield markdown(inspect.getdoc(kind) or "")
    if dataclasses.is_dataclass(kind):
        yield "| field | type |\n|---|---|"
        for field in dataclasses.fields(kind):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"| `{field.name}` | `{str(field.type).replace('|', chr(92) + '|')}{default}` |"
        yield ""
    inherited = {name: member for base in reversed(kind.__mro__[:-1]) for name, member in vars(base).items()}
    for name, member in inherited.items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"### {kind.__name__}.{name}\n"
            yield f"```python\n{name}: {inspect.signature(member.fget).return_annotation}\n```\n"
            yield markdown(inspect.getdoc(member) or "")
        elif inspect.isroutine(member):
            yield f"### {kind.__name__}.{name}\n"
            yield f"```python\n{_signature(name, getattr(kind, name))}\n```\n"
            yield markdown(inspect.getdoc(member) or "")


def _signature(name: str, function: object) -> str:
    """Return ``name(...)`` without self, with a line for each parameter if one line is too long."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    short = str(signature.replace(parameters=parameters)).replace("'", "")
    if len(name + short) <= 100:
        return name + short
    lines, starred = [], False
    for each in parameters:
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            lines.append("*")
            starred = True
        lines.append(str(each).replace("'", ""))
    returned = str(signature.return_annotation).replace("'", "")
    return "\n".join([f"{name}(", *(f"    {line}," for line in lines), f") -> {returned}"])


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown: code in single backquotes, indented blocks after ``::`` as Python."""
    lines, block = [], False
    for line in docstring.replace("``", "`").splitlines():
        if block and line.strip() and not line.startswith("    "):
            while not lines[-1].strip():
                lines.pop()
            lines += ["```", ""]
            block = False
        if line.rstrip().endswith("::"):
            if text := re.sub(r":*$", "", line.rstrip()):
                lines.append(f"{text}:")
            lines += ["", "```python"]
            block = True
        elif block:
            if line.strip() or lines[-1] != "```python":
                lines.append(line[4:])
        else:
            lines.append(line)
    return "\n".join([*lines, *(["```"] if block else []), ""])
