"""The table in ``jetson/data/methods.json``: where each method prunes and how many tokens it leaves, for plans made without torch.

``make generated`` writes it. Cuts that move with the depth of the decoder stand as shares ("8/32"), the others as layers. Counts are those of the default
options on LLaVA-1.5's grid of 24 x 24.
"""

from __future__ import annotations

import json
from dataclasses import replace

from foveate.export import methods
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.models import llava
from foveate.export.pruning import method as base
from foveate.export.spec import ModelSpec


def table() -> dict[str, dict]:
    """The table, as JSON has it."""
    spec = llava.load(Dummy("llava-1.5-7b", llava.CONFIGS["llava-1.5-7b"])).spec
    return {name: _facts(methods.load(name), spec) for name in methods.names()}


def _facts(method: base.Method, spec: ModelSpec) -> dict:
    total = spec.vision.num_tokens
    facts = {
        "where": "encoder"
        if method.encoder
        else "before"
        if method.before
        else "inside"
        if method.inside
        else "nowhere",
        "cuts": _cuts(method.inside, spec) if method.inside else [],
        "budgets": method.budgets(spec),
        "limits": base.sampled(total, lambda keep: method.leaves(spec, keep, total)),
    }
    return json.loads(json.dumps(facts))


def _cuts(inside, spec: ModelSpec) -> list[int | str]:
    """Layers of a decoder of 32, as shares where one of 64 is cut at others."""
    at = {
        depth: [cut.layer for cut in inside.cuts(replace(spec.decoder, num_layers=depth))]
        for depth in (32, 64)
    }
    moves = at[32] != at[64]
    return [f"{layer}/32" if moves else layer for layer in at[32]]
