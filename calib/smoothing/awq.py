"""AWQ: factors that enlarge the most important weights, so that rounding to int4 changes them least.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv
2306.00978. Eq. 5: s = s_X^alpha, where s_X is the mean |x| of each input channel. alpha is taken from a grid
over [0, 1] so that the error of eq. 4, |Q(diag(s) W) diag(s)^-1 x - W x|^2, is least over rows of real
activations, summed over the matrices that read x. alpha 0 is rounding to nearest, so on these rows the error
never grows. As in the authors' code, there are 20 steps, and s is divided by sqrt(max s * min s). Two things
of that code are left out. The search for clipped weights needs one stored number per block and column (100 MB
at 7B), while factors need one per row. Errors after the attention and the MLP need whole prompts instead of
rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.calib.schemes import int4

__all__ = ["STEPS", "factors", "rounded"]

STEPS = 20
_LEAST = 1e-4
_COLUMNS = 256  # columns of a matrix at a time, so that the rounded part stays in the processor's cache
_LIMIT = 7


def factors(rows: Tensor, mean_abs: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """Return the factors of an input, float32 [in], above 0; None if int4 does not take its matrices.

    ``rows`` [n, in] are some activations, ``mean_abs`` [in] is the mean over all of them, ``weights`` [in,
    out] are the matrices that read them.
    """
    block = int4.block_size(rows.shape[1])
    if block is None:
        return None
    grid = [_scaled(mean_abs, step / STEPS) for step in range(STEPS)]
    error = torch.zeros(STEPS, dtype=torch.float64)
    for weight in weights:
        for columns in weight.split(_COLUMNS, dim=1):
            wanted = rows @ columns
            for step, scale in enumerate(grid):
                quantized = rounded(columns * scale[:, None], block) / scale[:, None]
                error[step] += (rows @ quantized).sub_(wanted).square_().sum(dtype=torch.float64)
    return grid[int(error.argmin())]


def rounded(weight: Tensor, block: int) -> Tensor:
    """Round ``weight`` [in, out] like ``schemes.int4``: float32."""
    blocks = weight.reshape(-1, block, weight.shape[1])
    scale = (blocks.abs().amax(1, keepdim=True) / _LIMIT).clamp(min=torch.finfo(torch.float16).tiny)
    scale = scale.half().float()
    return (blocks / scale).round_().clamp_(-_LIMIT, _LIMIT).mul_(scale).reshape(weight.shape)


def _scaled(mean_abs: Tensor, alpha: float) -> Tensor:
    scale = mean_abs.clamp(min=_LEAST) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()
