"""``docs/api.md``: every public name and method is on it, and docstrings become Markdown."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

from foveate import runtime
from foveate.runtime import pipeline
from generated import api_page

OPAQUE = {"EncodedImage", "Generation", "ImageFeatures", "ImagePart", "Video"}
"""Classes that users pass on or name otherwise: the page says where they come from."""


def test_every_public_name_and_method_is_on_the_page() -> None:
    text = api_page.page()
    for name in runtime.__all__:
        kind = getattr(runtime, name)
        assert f"\n## {name}\n" in text
        for method in (each for each in vars(kind) if callable(getattr(kind, each)) and each[0] != "_"):
            assert f"\n### {name}.{method}\n\n```python\n{method}(" in text


def classes(hint: object) -> Iterator[type]:
    """Yield the classes of foveate in a type hint."""
    if isinstance(hint, type) and hint.__module__.startswith("foveate."):
        yield hint
    for part in typing.get_args(hint):
        yield from classes(part)


def test_what_public_methods_take_and_return_is_on_the_page() -> None:
    kinds = [getattr(runtime, name) for name in runtime.__all__]
    members = [member for kind in kinds for name, member in vars(kind).items() if name[0] != "_"]
    functions = [
        member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        for member in members
    ]
    hints = [typing.get_type_hints(each) for each in functions if inspect.isfunction(each)]
    named = {kind.__name__ for hint in hints for each in hint.values() for kind in classes(each)}
    assert named >= {"Answer", "Options", "Stream"}
    assert named - OPAQUE <= set(runtime.__all__)


def test_the_package_has_the_public_names_of_its_module() -> None:
    assert runtime.__all__ == pipeline.__all__


def test_code_of_a_docstring_becomes_a_block() -> None:
    text = api_page.markdown("Make ``x``. For example::\n\n    y = make(x)\n\n    print(y)\n\nThen stop.")
    assert text.rstrip() == (
        "Make `x`. For example:\n\n```python\ny = make(x)\n\nprint(y)\n```\n\nThen stop."
    )
