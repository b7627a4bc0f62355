"""fp8 (E4M3) weights and activations.

There is one scale per output column, and one calibrated scale per activation tensor. TensorRT makes an fp8
product of a product with a ``QuantizeLinear`` and ``DequantizeLinear`` pair on each side, on GPUs with
compute capability 8.9 or higher (Ada, Hopper, Blackwell; no Orin).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from foveate.calib.graph_values import input_of
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartKind, PartName, Quantized
from foveate.calib.schemes.scheme import Scheme
from foveate.calib.statistics import InputStatistics

__all__ = ["SCHEME"]

_DTYPE = ml_dtypes.float8_e4m3fn
_LIMIT = float(ml_dtypes.finfo(_DTYPE).max)  # 448
_TINY = 1e-6  # the smallest scale; float16 holds it with 4 bits


class _Fp8(Scheme):
    rounds_activations = True

    def quantize(self, weight: np.ndarray) -> Quantized:
        weight = weight.astype(np.float32, copy=False)
        peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
        scales = np.maximum(peak / _LIMIT, _TINY).astype(np.float16).astype(np.float32)
        scaled = weight * (1 / scales)
        return Quantized(np.clip(scaled, -_LIMIT, _LIMIT, out=scaled).astype(_DTYPE), scales[None])

    def needs(self, form: Form) -> tuple[PartName, ...]:
        return PartName(PartKind.VALUES, "float8_e4m3fn"), PartName(PartKind.COLUMN_SCALES, form.dtype)

    def place(self, site: Site) -> None:
        values, scale = map(site.stored, self.needs(site.form))
        weight = site.dequantized([values, scale], axis=1)
        for product in site.products:
            rounded = site.rounded(input_of(product, 0), _step(site.inputs), _DTYPE(0))
            product.replace_input_with(0, rounded)
            product.replace_input_with(1, weight)

    def rounded(self, x: Tensor, form: Form, seen: InputStatistics | None) -> Tensor:
        step = float(form.step(_step(seen)))
        return (x / step).clamp(-_LIMIT, _LIMIT).to(torch.float8_e4m3fn).float() * step


def _step(seen: InputStatistics | None) -> float:
    """Return the scale of an activation.

    It does not clip: fp8's steps grow with the value, so clipping gains nothing.
    """
    assert seen is not None, "ranges of fp8 are calibrated, see require_ranges"
    return float(seen.absmax.max()) / _LIMIT


SCHEME = _Fp8()
