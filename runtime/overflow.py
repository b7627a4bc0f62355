"""Explanations of NaN and infinity in a graph's output, from the ranges that its build recorded.

``ranges`` in ``bundle.json`` holds the largest values of each graph's layers in float32. A graph that
computes in float16 overflows where such a value is larger than float16 can hold.
"""

from __future__ import annotations

from typing import NamedTuple

from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.bundle.manifest import LayerPeak

__all__ = ["FLOAT16_MAX", "Cause", "cause_of", "exceeded", "largest", "place"]

FLOAT16_MAX = 65504.0
"""The largest finite number of float16 (IEEE 754 binary16)."""


class Cause(NamedTuple):
    """The cause of numbers that are not finite, and the user's way out, in words."""

    what: str
    remedy: str


def largest(bundle: Bundle, graph: str) -> LayerPeak | None:
    """Return the entry of ``ranges`` with the graph's largest value.

    None for bundles built before ``ranges``.
    """
    return max(bundle.manifest.ranges.get(graph, ()), key=lambda peak: peak.value, default=None)


def place(peak: LayerPeak, graph: str) -> str:
    """Return where the value of an entry of ``ranges`` occurred, in words."""
    layer = "" if peak.layer is None else f"layer {peak.layer} of "
    return f"{layer}{graph} ({peak.at})"


def cause_of(bundle: Bundle, dialect: str, graph: str, *, recorded: bool) -> Cause | None:
    """Return why ``graph`` gave numbers that are not finite, and what to do.

    ``recorded`` says that the reference answer itself is not finite. Returns None if the recorded ranges rule
    out an overflow; then the engine must be at fault.
    """
    if recorded:
        return Cause(
            "the build recorded NaN or infinity for it, so the checkpoint computes them in float32 as well",
            "build the bundle again from a sound checkpoint: the build names the layer",
        )
    entry = bundle.manifest.dialects[dialect]
    if entry.dtype != "float16" or graph in entry.widened:
        return None
    remedy = (
        "build the bundle again (graphs that float16 cannot hold become float32 then)"
        f"{_instead(bundle, dialect)}"
    )
    if not bundle.manifest.ranges:
        return Cause(
            f"float16 ends at {FLOAT16_MAX:g}, and this bundle is too old to tell how large its numbers are",
            remedy,
        )
    found = exceeded(bundle, graph)
    return Cause(f"float16 cannot hold what it computes: {found}", remedy) if found else None


def exceeded(bundle: Bundle, graph: str) -> str | None:
    """Return in words where ``graph`` first exceeds float16.

    None if the recorded ranges stay below its limit.
    """
    too_large = (each for each in bundle.manifest.ranges.get(graph, ()) if each.value > FLOAT16_MAX)
    if (first := next(too_large, None)) is None:
        return None
    return f"{place(first, graph)} reaches {first.value:.3g} in float32, float16 ends at {FLOAT16_MAX:g}"


def _instead(bundle: Bundle, dialect: str) -> str:
    wide = [name for name, entry in bundle.manifest.dialects.items() if entry.dtype == "float32"]
    if not wide or dialect in wide:
        return ", with --dialects ort where ONNX Runtime is enough"
    return f", or compile what is in float32: foveate compile {bundle.path} --dialect {wide[0]}"
