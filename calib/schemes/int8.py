"""int8 weights and activations: symmetric, round to nearest, one scale per output column, one per activation tensor.

Where ranges are found at run time (dialect ``ort``) the form is ``DynamicQuantizeLinear``, ``MatMulInteger`` and a scale, in
float32, which ONNX Runtime fuses. Weights are then stored as uint8 with the zero point 128: with int8 ones, CPUs that have
AVX2 and no VNNI add pairs of products in 16 bits, which overflow without a word (docs/decisions/0012). Elsewhere inputs and
weights are rounded by ``QuantizeLinear`` and ``DequantizeLinear`` pairs with calibrated ranges.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from foveate.calib.schemes.base import Form, Quantized, Site

__all__ = ["ROUNDS_ACTIVATIONS", "needs", "place", "quantize", "takes"]

ROUNDS_ACTIVATIONS = True
_LIMIT = 127  # symmetric: -128 is left unused
_TINY = 1e-6  # the least scale; float16 holds it with 4 bits


def takes(inputs: int, outputs: int) -> bool:
    return True


def quantize(weight: np.ndarray) -> Quantized:
    """``weight [K,N]`` float. Scales are rounded to float16 first, as in ``int4``."""
    weight = weight.astype(np.float32, copy=False)
    peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    scales = np.maximum(peak / _LIMIT, _TINY).astype(np.float16).astype(np.float32)
    scaled = weight * (1 / scales)
    return Quantized(np.clip(np.rint(scaled, out=scaled), -_LIMIT, _LIMIT).astype(np.int8), scales[None])


def needs(form: Form) -> tuple[str, ...]:
    return "uint8" if form.dynamic else "int8", f"channel.{form.dtype}"


def place(site: Site) -> None:
    if site.form.dynamic:
        for product in site.products:
            _dynamic(site, product)
        return
    values, scale = map(site.stored, needs(site.form))
    weight = site.dequantized([values, scale], axis=1)
    step = site.inputs.range / _LIMIT
    for product in site.products:
        product.replace_input_with(0, site.rounded(product, step, np.int8(0)))
        product.replace_input_with(1, weight)


def _dynamic(site: Site, product: ir.Node) -> None:
    source, name = product.inputs[0], product.name
    values, scale = map(site.stored, needs(site.form))

    def make() -> ir.Value:
        return site.insert(source, "DynamicQuantizeLinear", [source], f"{site.weight.name}.input", outputs=3)

    rounded, step, zero = site.once(source, "dynamic", make).producer().outputs
    shifted = site.constant("zero.uint8", np.uint8(128))
    y = product.outputs[0]
    whole = site.insert(y, "MatMulInteger", [rounded, values, zero, shifted], f"{name}.integer")
    real = site.insert(whole, "Cast", [whole], f"{name}.float", to=ir.DataType.FLOAT)
    steps = site.insert(real, "Mul", [step, scale], f"{name}.steps")
    site.replace(product, site.insert(steps, "Mul", [real, steps], f"{name}.scaled"))
