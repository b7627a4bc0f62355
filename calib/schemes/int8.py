"""int8 weights and activations: symmetric, rounded to nearest, one scale per output column.

In the dialect ``ort`` each row of an activation has a range of its own, found at run time: it is divided by
its largest value, rounded to 1/127 of that, and the product is multiplied by it again. A row's result never
depends on the other rows of the call. ONNX Runtime fuses the rounding and the weights' scales into its
integer product. Weights have 7 bits there. CPUs with AVX2 and without VNNI add pairs of products in 16 bits,
which would overflow silently, and their products with uint8 weights take a third longer
(docs/decisions/0012). In other dialects an activation has one range, which is calibrated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
from torch import Tensor

from foveate.calib.graph_values import input_of, like
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartKind, PartName, Quantized
from foveate.calib.schemes.scheme import Scheme
from foveate.calib.statistics import InputStatistics

__all__ = ["SCHEME"]

_LIMIT = 127  # symmetric: -128 is left unused
_NARROW = 64  # the sum of 2 products with uint8 is at most 32,640, which fits in 16 bits
_MIDDLE = np.uint8(128)  # stands for 0 in activations of the dialect ``ort``
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
        values, scale = map(site.stored, self.needs(site.form))
        weight = site.dequantized([values, scale], axis=1)
        for product in site.products:
            source = input_of(product, 0)
            product.replace_input_with(1, weight)
            if site.form.dynamic:
                _round_rows(site, product, source)
            else:
                product.replace_input_with(0, site.rounded(source, _step(site.inputs), np.int8(0)))

    def rounded(self, x: Tensor, form: Form, seen: InputStatistics | None) -> Tensor:
        if not form.dynamic:
            fixed = float(form.step(_step(seen)))
            return (x / fixed).round().clamp(-128, 127) * fixed
        step = float(form.step(1 / _LIMIT))
        peak = x.abs().amax(-1, keepdim=True).clamp(min=_TINY)
        return (x / peak / step).round() * step * peak


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


def _round_rows(site: Site, product: ir.Node, source: ir.Value) -> None:
    """Divide each row of ``source`` by its peak and round it, and multiply the product by the peak."""
    peak = site.once(source, "peak", lambda: _peaks(site, source))
    name = f"{site.weight.name}.input.even"
    even = site.once(source, "even", lambda: like(site.insert(peak, "Div", [source, peak], name), source))
    product.replace_input_with(0, site.rounded(even, 1 / _LIMIT, _MIDDLE))
    y = product.outputs[0]
    site.replace(product, site.insert(y, "Mul", [y, peak], f"{product.name}.rows"))


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
