"""A manifest: what it says of its graphs."""

from __future__ import annotations

from dataclasses import replace

from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import PREFILL_ROWS, Manifest


def most_rows(manifest: Manifest) -> int:
    return manifest.forms("llm", next(iter(manifest.dialects)))[0][0].most_rows


def test_segments_are_compiled_for_the_rows_that_are_fed_at_once(make_bundle) -> None:
    """With in-LLM pruners a prompt with images comes in one piece, however long it is."""
    manifest = load(make_bundle()).manifest
    spec = manifest.graphs["llm"]
    (symbol,) = {dim for tensor in spec.inputs for dim in tensor.shape if dim == spec.rows}
    longer = replace(symbol, max=4096)
    inputs = tuple(
        replace(tensor, shape=tuple(longer if dim == symbol else dim for dim in tensor.shape))
        for tensor in spec.inputs
    )
    manifest = replace(manifest, graphs={**manifest.graphs, "llm": replace(spec, inputs=inputs)})
    assert most_rows(manifest) == PREFILL_ROWS == 1024
    cut = replace(manifest.method, cuts=(1,))
    assert most_rows(replace(manifest, methods=(cut,))) == 4096
