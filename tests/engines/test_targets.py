"""The targets that are found, their options, and what is said of one whose library is missing."""

from __future__ import annotations

import pytest

from foveate.engines.backend import Backend, Option, Target
from foveate.engines.errors import UserError
from foveate.engines.targets import TARGETS, backend, options_of, usable
from foveate.engines.trt.backend import TensorRT


def test_they_are_found_in_the_order_of_preference() -> None:
    assert list(TARGETS) == ["tensorrt", "tensorrt-rtx", "onnxruntime"]


def test_targets() -> None:
    with pytest.raises(UserError, match="did you mean onnxruntime"):
        backend("onnxruntim")
    with pytest.raises(UserError, match="wrong accuracy level"):
        options_of("onnxruntime", {"accuracy_level": 7})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Backend:
        import no_such_library

        return no_such_library.Backend()

    abacus = Target("abacus", "Abacus", ("no_such_library",), "pip install beads", 99, (), make)
    monkeypatch.setitem(TARGETS, "abacus", abacus)
    with pytest.raises(UserError, match=r"needs no_such_library \| it is not installed \| pip install beads"):
        backend("abacus")


def test_a_build_ends_with_what_the_machine_can_execute(monkeypatch: pytest.MonkeyPatch) -> None:
    can = {"tensorrt-rtx": "no GPU"}
    monkeypatch.setattr(TensorRT, "cannot_run", lambda self, machine=None: can.get(self.target))
    assert usable(["ort", "native"]) == ["onnxruntime"]
    assert usable(["native"]) == []
    can.clear()
    assert usable(["ort", "native"]) == [
        "tensorrt-rtx",
        "onnxruntime",
    ]  # full TensorRT is not installed
    assert usable(["ort"]) == ["onnxruntime"]


def test_options_of_one_name_are_one_option() -> None:
    """The command line has one flag for both, so they must not differ."""
    found: dict[str, Option] = {}
    for target in TARGETS.values():
        for option in target.options:
            assert found.setdefault(option.name, option) == option
