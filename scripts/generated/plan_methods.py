"""The table ``jetson/data/methods.json``: where each method prunes and how many tokens it keeps.

``foveate plan`` reads it, since it has no torch. ``make generated`` writes it. Cuts that depend on the depth
of the decoder are shares ("8/32"), the others are layers. Counts are those of the default options on
LLaVA-1.5's grid of 24 x 24.
"""

from __future__ import annotations

import json
from dataclasses import replace

from foveate.export import methods
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.models import llava
from foveate.export.pruning.budgets import sampled
from foveate.export.pruning.in_llm import InLLMPruner
from foveate.export.pruning.method import Method
from foveate.export.spec import ModelSpec


def table() -> dict[str, dict]:
    """Return the table as plain data."""
    spec = llava.load(Dummy("llava-1.5-7b", llava.CONFIGS["llava-1.5-7b"])).spec
    return {name: _facts(methods.load(name), spec) for name in methods.names()}


def _facts(method: Method, spec: ModelSpec) -> dict:
    total = spec.vision.num_tokens
    facts = {
        "where": "encoder"
        if method.encoder_merger
        else "before"
        if method.pre_llm
        else "inside"
        if method.in_llm
        else "nowhere",
        "cuts": _cuts(method.in_llm, spec) if method.in_llm else [],
        "budgets": method.budgets(spec),
        "limits": sampled(total, lambda keep: method.leaves(spec, keep, total)),
    }
    return json.loads(json.dumps(facts))


def _cuts(method: InLLMPruner, spec: ModelSpec) -> list[int | str]:
    """Return the cuts in a decoder of 32 layers, as shares if a decoder of 64 layers is cut elsewhere."""
    at = {
        depth: [place.layer for place in method.prune_layers(replace(spec.decoder, num_layers=depth))]
        for depth in (32, 64)
    }
    moves = at[32] != at[64]
    return [f"{layer}/32" if moves else layer for layer in at[32]]
