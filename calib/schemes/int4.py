"""int4 weights: symmetric, round to nearest, one scale per block of 128 inputs and output column.

The stored form is what ONNX's blocked ``DequantizeLinear`` reads (two values a byte, low nibble first), so
that ONNX Runtime fuses it into its int4 kernels and TensorRT packs it as it is.
"""

from __future__ import annotations

import numpy as np

__all__ = ["BLOCK", "block_size", "dequantize", "quantize"]

BLOCK = 128
_LIMIT = 7  # symmetric: -8 is left unused


def block_size(inputs: int) -> int | None:
    """The largest block of 128, 64 or 32 that divides the input width; None: too narrow to quantize."""
    return next((size for size in (BLOCK, 64, 32) if inputs % size == 0), None)


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``weight [K,N]`` float to packed values [K*N/2] uint8 and scales [K/block,N] float32.

    Scales are rounded to float16 first, so that the float32 and float16 graphs dequantize to the same weights.
    """
    inputs, outputs = weight.shape
    block = block_size(inputs)
    if block is None or outputs % 2:
        raise ValueError(
            f"cannot pack int4 weights | got shape {weight.shape}, expected [multiple of 32, even]"
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
    nibbles = values.reshape(-1, 2).view(np.uint8)
    return (nibbles[:, 0] & 0xF) | (nibbles[:, 1] << 4), scales


def dequantize(packed: np.ndarray, scales: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The float32 weights [K,N] that a graph holding these bytes computes with."""
    nibbles = np.empty((packed.size, 2), np.int8)
    nibbles[:, 0], nibbles[:, 1] = packed & 0xF, packed >> 4
    values = ((nibbles ^ 8) - 8).reshape(scales.shape[0], -1, shape[1])
    return (values * scales[:, None]).reshape(shape)
