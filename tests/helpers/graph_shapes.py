"""Shapes of tensors in graphs that are to be traced."""

from __future__ import annotations

from foveate.engines.spec import Symbol


def shape(graphs, graph, name):
    """Return the dims of a graph's input or output: a number, or the least and the most of a symbol."""
    spec = next(each.spec for each in graphs if each.spec.name == graph)
    found = next(t for t in (*spec.inputs, *spec.outputs) if t.name == name)
    return [(d.min, d.max) if isinstance(d, Symbol) else d for d in found.shape]
