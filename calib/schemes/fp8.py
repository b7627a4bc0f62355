"""fp8 (E4M3) weights and activations, with one scale per output column and one calibrated scale per
activation tensor.

TensorRT makes an fp8 product of a product with a ``QuantizeLinear`` and ``DequantizeLinear`` pair on each
side, on GPUs with compute capability 8.9 or higher (Ada, Hopper, Blackwell; no Orin).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from foveate.calib.schemes.scheme import Form, Quantized, Site
from foveate.calib.statistics import InputStatistics

__all__ = ["ROUNDS_ACTIVATIONS", "needs", "place", "quantize", "rounded", "takes"]

ROUNDS_ACTIVATIONS = True
_DTYPE = ml_dtypes.float8_e4m3fn
_LIMIT = float(ml_dtypes.finfo(_DTYPE).max)  # 448
_TINY = 1e-6  # the smallest scale; float16 holds it with 4 bits


def takes(inputs: int, outputs: int) -> bool:
    return True


def quantize(weight: np.ndarray) -> Quantized:
    """Quantize ``weight [K,N]`` float. Scales are rounded to float16 first, as in ``int4``."""
    weight = weight.astype(np.float32, copy=False)
    peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    scales = np.maximum(peak / _LIMIT, _TINY).astype(np.float16).astype(np.float32)
    scaled = weight * (1 / scales)
    return Quantized(np.clip(scaled, -_LIMIT, _LIMIT, out=scaled).astype(_DTYPE), scales[None])


def needs(form: Form) -> tuple[str, ...]:
    return "float8_e4m3fn", f"channel.{form.dtype}"


def place(site: Site) -> None:
    values, scale = map(site.stored, needs(site.form))
    weight = site.dequantized([values, scale], axis=1)
    for product in site.products:
        product.replace_input_with(0, site.rounded(product, _step(site.inputs), _DTYPE(0)))
        product.replace_input_with(1, weight)


def rounded(x: Tensor, form: Form, seen: InputStatistics | None) -> Tensor:
    step = float(form.step(_step(seen)))
    return (x / step).clamp(-_LIMIT, _LIMIT).to(torch.float8_e4m3fn).float() * step


def _step(seen: InputStatistics) -> float:
    """Return the scale of an activation. It does not clip: fp8's steps grow with the value, so clipping gains
    nothing."""
    return seen.absmax.max() / _LIMIT
