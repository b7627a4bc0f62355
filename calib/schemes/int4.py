"""int4 weights: symmetric, rounded to nearest, one scale per block of 128 inputs and output column.

The weights are stored for ONNX's blocked ``DequantizeLinear``. ONNX Runtime fuses it into its int4 kernels,
and TensorRT packs it without conversion. Weights of a quantized checkpoint may have zero points and an order
of their inputs (``export/checkpoints/prequantized.py``). For engines without zero points (TensorRT) the graph
computes

    x @ (s (q - z)) = x @ (s q) + sums(x) @ (-s z),    sums(x) [G] over the blocks of x

which is exact (docs/decisions/0011).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from foveate.calib.graph_values import axis_size, input_of, like, shape_of
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartKind, PartName, Quantized
from foveate.calib.schemes.scheme import Scheme

__all__ = ["BLOCK", "SCHEME", "block_size"]

BLOCK = 128
_LIMIT = 7  # symmetric: -8 is left unused


def block_size(inputs: int) -> int | None:
    """Return the largest block of 128, 64 or 32 that divides the number of inputs, or None if none does."""
    return next((size for size in (BLOCK, 64, 32) if inputs % size == 0), None)


class _Int4(Scheme):
    def takes(self, inputs: int, outputs: int) -> bool:
        return block_size(inputs) is not None

    def quantize(self, weight: np.ndarray) -> Quantized:
        inputs, outputs = weight.shape
        block = block_size(inputs)
        if block is None:
            raise ValueError(
                f"cannot pack int4 weights | got shape {weight.shape}, expected [multiple of 32, ...]"
            )
        blocks = weight.astype(np.float32, copy=False).reshape(inputs // block, block, outputs)
        peak = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
        tiny = np.finfo(np.float16).smallest_normal
        scales = np.maximum(peak / _LIMIT, tiny).astype(np.float16).astype(np.float32)
        values = np.empty(blocks.shape, np.int8)
        for block_values, block_weights, scale in zip(values, blocks, scales, strict=True):
            scaled = block_weights * (1 / scale)
            np.clip(np.rint(scaled, out=scaled), -_LIMIT, _LIMIT, out=scaled)
            block_values[...] = scaled
        return Quantized(values.reshape(weight.shape), scales)

    def needs(self, form: Form) -> tuple[PartName, ...]:
        return (
            PartName(PartKind.VALUES, "int4"),
            PartName(PartKind.SCALES, form.dtype),
            PartName(PartKind.ZEROS, "int4") if form.zero_points else PartName(PartKind.SHIFTS, form.dtype),
            PartName(PartKind.ORDER, "int64"),
        )

    def place(self, site: Site) -> None:
        opsets = site.graph.opset_imports
        opsets[""] = max(opsets[""], 21)  # the opset that introduced int4 and blocks
        of_values, of_scales, of_zeros, of_order = self.needs(site.form)
        values, scale = site.stored(of_values), site.stored(of_scales)
        zeros, order = site.find(of_zeros), site.find(of_order)
        block = axis_size(site.weight, 0) // axis_size(scale, 0)
        given = [values, scale, *([zeros] if zeros is not None and site.form.zero_points else [])]
        weight = site.dequantized(given, axis=0, block_size=block)
        for product in site.products:
            if order is not None:
                product.replace_input_with(0, _ordered(site, input_of(product, 0), order))
            product.replace_input_with(1, weight)
            if zeros is not None and not site.form.zero_points:
                y, sums = product.outputs[0], _sums(site, input_of(product, 0), block)
                shift = site.insert(sums, "MatMul", [sums, zeros], f"{product.name}.shift")
                site.replace(product, site.insert(y, "Add", [y, shift], f"{product.name}.shifted"))


def _ordered(site: Site, source: ir.Value, order: ir.Value) -> ir.Value:
    """Gather the input's columns [..., K] in the order of the weight's rows."""
    content = order.const_value
    assert content is not None, f"{order.name} is no initializer"

    def make() -> ir.Value:
        value = site.insert(source, "Gather", [source, order], f"{site.weight.name}.input.ordered", axis=-1)
        return like(value, source)

    return site.once(source, content.numpy().tobytes(), make)


def _sums(site: Site, source: ir.Value, block: int) -> ir.Value:
    """Sum the input over blocks: [..., K] -> [..., G]."""

    def make() -> ir.Value:
        name, others = f"{site.weight.name}.input", len(shape_of(source)) - 1
        shape = site.constant(f"{name}.blocks", np.array([*[0] * others, -1, block]))
        split = site.insert(source, "Reshape", [source, shape], f"{name}.split")
        last = site.constant("sums.axis", np.array([-1]))
        sums = site.insert(split, "ReduceSum", [split, last], f"{name}.sums", keepdims=0)
        if source.dtype is not None:
            sums.dtype = source.dtype
        return sums

    return site.once(source, ("sums", block), make)


SCHEME = _Int4()
