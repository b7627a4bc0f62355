"""Every kind of method is in every test run, although most methods are built in ``make matrix`` alone."""

from __future__ import annotations

from often import METHODS

from foveate.export import methods
from foveate.export.models import llava

SPEC = llava.tiny().spec


def kind(name: str) -> tuple[bool, ...]:
    """Return where a method prunes: in the encoder, before the language model, inside it."""
    method = methods.load(name)
    return tuple(part is not None for part in (method.encoder_merger, method.pre_llm, method.in_llm))


def test_every_kind_of_method_is_built_in_every_run() -> None:
    assert {kind(name) for name in METHODS} == {kind(name) for name in methods.names()}


def test_every_source_of_tokens_is_built_in_every_run() -> None:
    """The methods of every run cover both sides of the projector, trained networks and merging."""

    def traits(name: str) -> set[tuple[str, object]]:
        pruner = methods.load(name).pre_llm
        if pruner is None:
            return set()
        trained = pruner.module(SPEC) is not None
        return {("source", pruner.source), ("merges", pruner.merges), ("trained", trained)}

    assert set.union(*map(traits, METHODS)) == set.union(*map(traits, methods.names()))
