"""Methods are found by their files."""

from __future__ import annotations

from foveate.export import methods


def test_every_file_is_a_method():
    assert {"none", "random", "uniform"} <= set(methods.names())
    assert "base" not in methods.names()
    for name in methods.names():
        assert methods.load(name).name == name
