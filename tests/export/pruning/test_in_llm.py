"""Layers that in-LLM pruners name are layers of the decoder."""

from __future__ import annotations

import pytest

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava


def test_cuts_that_the_decoder_has_not_are_refused():
    parts = llava.tiny(layers=4)
    for name, options in (
        ("fastv", {"layer": "4"}),
        ("pyramiddrop", {"layers": "2,9"}),
        ("pyramiddrop", {"layers": "0"}),
        ("feather", {"layers": "3,2"}),
    ):
        with pytest.raises(UserError, match="layer") as refused:
            assemble(parts, methods.load(name, options))
        assert refused.value.code == 2
