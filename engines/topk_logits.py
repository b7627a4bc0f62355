"""The most likely tokens, picked on the device.

The host then copies these instead of the logits of every token.

A graph with logits has these extra outputs if its engine was compiled with ``device_sampling`` (see
``engines.trt.backend``). The sampler looks for them among the outputs.
"""

from __future__ import annotations

from dataclasses import replace

from foveate.engines.spec import GraphSpec, TensorSpec

__all__ = ["IDS", "MOST", "VALUES", "offer"]

MOST = 64
"""Number of tokens that are picked.

Sampling from fewer tokens than this can use them. Hugging Face's usual top-k is 50.
"""

VALUES, IDS = "top_values", "top_ids"


def offer(spec: GraphSpec) -> GraphSpec:
    """Return ``spec`` with the outputs for the ``K = min(MOST, V)`` largest of ``logits [1,1,V]``.

    ``top_values [1,1,K]`` are the logits and ``top_ids`` int32 [1,1,K] their token ids. A graph without
    logits is returned unchanged.
    """
    logits = next((tensor for tensor in spec.outputs if tensor.name == "logits"), None)
    if logits is None:
        return spec
    *lead, size = logits.shape
    assert isinstance(size, int), "the number of tokens in the vocabulary is fixed"
    shape = (*lead, min(MOST, size))
    found = TensorSpec(VALUES, logits.dtype, shape), TensorSpec(IDS, "int32", shape)
    return replace(spec, outputs=(*spec.outputs, *found))
