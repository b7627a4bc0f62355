"""int8 weights and activations: symmetric, rounded to nearest, one scale per output column.

In the dialect ``ort`` ranges are found at run time, one per row of an activation. Rows are first divided by
their largest value: decoders have tokens that are a thousand times larger than others, which would otherwise
be rounded to 0. Then follow ``DynamicQuantizeLinear``, ``MatMulInteger`` and a scale in float32, which ONNX
Runtime fuses. Weights have 7 bits there. CPUs with AVX2 and without VNNI add pairs of products in 16 bits,
which would overflow silently, and their products with uint8 weights take a third longer
(docs/decisions/0012). In other dialects inputs and weights are rounded by ``QuantizeLinear`` and
``DequantizeLinear`` pairs with calibrated ranges, one per activation tensor.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
from torch import Tensor

from foveate.calib.graph_values import input_of
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartKind, PartName, Quantized
from foveate.calib.schemes.scheme import Scheme
from foveate.calib.statistics import InputStatistics

__all__ = ["SCHEME"]

_LIMIT = 127  # symmetric: -128 is left unused
_NARROW = 64  # the sum of 2 products with uint8 is at most 32,640, which fits in 16 bits
_TINY = 1e-6  # the smallest scale; float16 holds it with 4 bits


class _Int8(Scheme):
    rounds_activations = True

    def quantize(self, weight: np.ndarray) -> Quantized:
        weight = weight.astype(np.float32, copy=False)
        return replace(_round(weight, _LIMIT), narrow=partial(_round, weight, _NARROW))

    def needs(self, form: Form) -> tuple[PartName, ...]:
        values, scales = (
            ("int7", PartKind.NARROW_COLUMN_SCALES) if form.dynamic else ("int8", PartKind.COLUMN_SCALES)
        )
        return PartName(PartKind.VALUES, values), PartName(scales, form.dtype)

    def place(self, site: Site) -> None:
        if site.form.dynamic:
            for product in site.products:
                _dynamic(site, product)
            return
        values, scale = map(site.stored, self.needs(site.form))
        weight = site.dequantized([values, scale], axis=1)
        for product in site.products:
            product.replace_input_with(0, site.rounded(product, _step(site.inputs), np.int8(0)))
            product.replace_input_with(1, weight)

    def rounded(self, x: Tensor, form: Form, seen: InputStatistics | None) -> Tensor:
        if not form.dynamic:
            fixed = float(form.step(_step(seen)))
            return (x / fixed).round().clamp(-128, 127) * fixed
        peak = x.abs().amax(-1, keepdim=True).clamp(min=_TINY)
        even = x / peak
        low, high = even.min().clamp(max=0), even.max().clamp(min=0)
        step = (high - low) / 255
        zero = (-low / step).round()
        return ((even / step).round() + zero).clamp(0, 255).sub(zero) * step * peak


SCHEME = _Int8()


def _round(weight: np.ndarray, limit: int) -> Quantized:
    peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    scales = np.maximum(peak / limit, _TINY).astype(np.float16).astype(np.float32)
    scaled = weight * (1 / scales)
    return Quantized(np.clip(np.rint(scaled, out=scaled), -limit, limit).astype(np.int8), scales[None])


def _step(seen: InputStatistics | None) -> float:
    """Return the calibrated scale of an activation."""
    assert seen is not None, "ranges of this form are calibrated, see require_ranges"
    return seen.range / _LIMIT


def _dynamic(site: Site, product: ir.Node) -> None:
    source, name = input_of(product, 0), product.name
    values, scale = map(site.stored, SCHEME.needs(site.form))
    peak = site.once(source, "peak", lambda: _peaks(site, source))

    def make() -> ir.Value:
        even = site.insert(peak, "Div", [source, peak], f"{site.weight.name}.input.even")
        return site.insert(even, "DynamicQuantizeLinear", [even], f"{site.weight.name}.input", outputs=3)

    quantize = site.once(source, "dynamic", make).producer()
    assert quantize is not None, "made by a node"
    rounded, step, zero = quantize.outputs
    y = product.outputs[0]
    whole = site.insert(
        y, "MatMulInteger", [rounded, values, zero, site.constant("zero.int8", np.int8(0))], f"{name}.integer"
    )
    real = site.insert(whole, "Cast", [whole], f"{name}.float", to=ir.DataType.FLOAT)
    steps = site.insert(real, "Mul", [step, scale], f"{name}.steps")
    scaled = site.insert(steps, "Mul", [real, steps], f"{name}.scaled")
    site.replace(product, site.insert(scaled, "Mul", [scaled, peak], f"{name}.rows"))


def _peaks(site: Site, source: ir.Value) -> ir.Value:
    """Return the largest absolute value of each row [..., 1], never 0.

    It takes maximum and minimum, which needs no array of absolute values.
    """
    name, axes = f"{site.weight.name}.input", [site.constant("axes.last", np.array([-1]))]
    least = site.insert(source, "ReduceMin", [source, *axes], f"{name}.least", keepdims=1)
    most = site.insert(source, "ReduceMax", [source, *axes], f"{name}.most", keepdims=1)
    below = site.insert(least, "Neg", [least], f"{name}.below")
    ends = [most, below, site.constant("peak.least", np.float32(_TINY))]
    return site.insert(below, "Max", ends, f"{name}.peak")
