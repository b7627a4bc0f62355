"""``docs/api.md``: every public name and method is on it, and docstrings become Markdown."""

from __future__ import annotations

from foveate import runtime
from generated import api_page


def test_every_public_name_and_method_is_on_the_page() -> None:
    text = api_page.page()
    for name in runtime.__all__:
        kind = getattr(runtime, name)
        assert f"\n## {name}\n" in text
        for method in (each for each in vars(kind) if callable(getattr(kind, each)) and each[0] != "_"):
            assert f"\n### {name}.{method}\n\n```python\n{method}(" in text


def test_code_of_a_docstring_becomes_a_block() -> None:
    text = api_page.markdown("Make ``x``. For example::\n\n    y = make(x)\n\n    print(y)\n\nThen stop.")
    assert text.rstrip() == (
        "Make `x`. For example:\n\n```python\ny = make(x)\n\nprint(y)\n```\n\nThen stop."
    )
