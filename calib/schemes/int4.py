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

from foveate.calib.schemes.scheme import Form, Quantized, Site

__all__ = ["BLOCK", "ROUNDS_ACTIVATIONS", "block_size", "needs", "place", "quantize", "takes"]

BLOCK = 128
ROUNDS_ACTIVATIONS = False
_LIMIT = 7  # symmetric: -8 is left unused


def block_size(inputs: int) -> int | None:
    """Return the largest block of 128, 64 or 32 that divides the number of inputs, or None if none does."""
    return next((size for size in (BLOCK, 64, 32) if inputs % size == 0), None)


def takes(inputs: int, outputs: int) -> bool:
    return block_size(inputs) is not None


def quantize(weight: np.ndarray) -> Quantized:
    """Quantize ``weight [K,N]`` float, K a multiple of 32. Raises ValueError for other shapes.

    Scales are rounded to float16 first, so that the float32 and float16 graphs dequantize to the same
    weights.
    """
    inputs, outputs = weight.shape
    block = block_size(inputs)
    if not takes(inputs, outputs):
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


def needs(form: Form) -> tuple[str, ...]:
    zeros = "zero.int4" if form.zero_points else f"shift.{form.dtype}"
    return "int4", f"scale.{form.dtype}", zeros, "order.int64"


def place(site: Site) -> None:
    opsets = site.graph.opset_imports
    opsets[""] = max(opsets[""], 21)  # the opset that introduced int4 and blocks
    values, scale, zeros, order = map(site.stored, needs(site.form))
    block = site.weight.shape[0] // scale.shape[0]
    given = [values, scale, *([zeros] if zeros is not None and site.form.zero_points else [])]
    weight = site.dequantized(given, axis=0, block_size=block)
    for product in site.products:
        if order is not None:
            product.replace_input_with(0, _ordered(site, product.inputs[0], order))
        product.replace_input_with(1, weight)
        if zeros is not None and not site.form.zero_points:
            y, sums = product.outputs[0], _sums(site, product.inputs[0], block)
            shift = site.insert(sums, "MatMul", [sums, zeros], f"{product.name}.shift")
            site.replace(product, site.insert(y, "Add", [y, shift], f"{product.name}.shifted"))


def _ordered(site: Site, source: ir.Value, order: ir.Value) -> ir.Value:
    def make() -> ir.Value:
        value = site.insert(source, "Gather", [source, order], f"{site.weight.name}.input.ordered", axis=-1)
        value.shape, value.dtype = source.shape, source.dtype
        return value

    return site.once(source, order.const_value.numpy().tobytes(), make)


def _sums(site: Site, source: ir.Value, block: int) -> ir.Value:
    """Sum the input over blocks: [..., K] -> [..., G]."""

    def make() -> ir.Value:
        name = f"{site.weight.name}.input"
        shape = site.constant(f"{name}.blocks", np.array([*[0] * (len(source.shape) - 1), -1, block]))
        split = site.insert(source, "Reshape", [source, shape], f"{name}.split")
        sums = site.insert(
            split,
            "ReduceSum",
            [split, site.constant("sums.axis", np.array([-1]))],
            f"{name}.sums",
            keepdims=0,
        )
        sums.dtype = source.dtype
        return sums

    return site.once(source, ("sums", block), make)
