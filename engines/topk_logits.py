"""The likeliest tokens, picked where the logits are: the host then copies them and not a number for every token.

A graph with logits gives them out where its engine was asked for that (``device_sampling`` of ``engines.trt``); whoever
samples looks for them among the outputs.
"""

from __future__ import annotations

from dataclasses import replace

from foveate.engines.spec import GraphSpec, TensorSpec

__all__ = ["IDS", "MOST", "VALUES", "offer"]

MOST = 64
"""Settings that draw among fewer tokens than this are served; Hugging Face's usual top-k is 50."""

VALUES, IDS = "top_values", "top_ids"


def offer(spec: GraphSpec) -> GraphSpec:
    """A graph with ``logits [1,1,V]`` gives out as well the ``K = min(MOST, V)`` largest: ``top_values [1,1,K]``, and
    ``top_ids`` int32 [1,1,K], whose they are. Other graphs stay as they are."""
    logits = next((tensor for tensor in spec.outputs if tensor.name == "logits"), None)
    if logits is None:
        return spec
    *lead, size = logits.shape
    shape = (*lead, min(MOST, size))
    found = TensorSpec(VALUES, logits.dtype, shape), TensorSpec(IDS, "int32", shape)
    return replace(spec, outputs=(*spec.outputs, *found))
