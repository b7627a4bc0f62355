"""Names of taps, and the layers that methods read by default."""

from __future__ import annotations

import pytest

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.pruning.taps import tap


def test_taps_are_resolved(bench):
    spec = bench().spec
    assert tap(spec, "cls_attention") == "cls_attention.2"
    assert tap(spec, "hidden", 1) == "hidden.1"
    assert tap(spec, "features") == "features"
    with pytest.raises(UserError, match=r"runs 3 layers, expected -3\.\.2"):
        tap(spec, "keys", 3)


def test_middle_layers_are_in_proportion(bench):
    spec = bench().spec
    assert methods.load("hiprune").taps(spec) == ("received_attention.1", "received_attention.2")
    object.__setattr__(spec.vision, "depth", 23)
    assert methods.load("hiprune").taps(spec) == ("received_attention.8", "received_attention.22")
    assert methods.load("vscan").taps(spec) == ("cls_attention.5", "cls_attention.22")
    object.__setattr__(spec.vision, "depth", 1)
    for name in ("hiprune", "vscan"):
        (name_of_tap,) = methods.load(name).taps(spec)
        assert name_of_tap.endswith(".0")
