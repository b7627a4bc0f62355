"""AWQ: factors that make the weights which matter most large, so that rounding to int4 hurts them least.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978. Eq. 5:
s = s_X^alpha with s_X the mean |x| of each input channel, and alpha the one of a grid over [0, 1] for which the error of
eq. 4, |Q(diag(s) W) diag(s)^-1 x - W x|^2, is least over rows of true activations, summed over the matrices that read x.
alpha 0 is rounding to nearest, so on these rows nothing gets worse. As the authors' code has it: 20 steps, and s divided by
sqrt(max s * min s). Not here: the search for clipped weights, which needs a number per block and column to be kept (100 MB
at 7B) where factors need one per row; and errors behind the attention and the MLP, which need whole prompts in place of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.calib.schemes import int4

__all__ = ["STEPS", "factors", "rounded"]

STEPS = 20
_LEAST = 1e-4
_COLUMNS = 256  # of a matrix at once: what is rounded stays in the processor's cache
_LIMIT = 7


def factors(rows: Tensor, mean_abs: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """``rows`` [n, in] of activations, ``mean_abs`` [in] over all of them, ``weights`` [in, out] each -> float32 [in], above 0.

    None where these matrices are not quantized to int4.
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
    """``weight`` [in, out] as ``schemes.int4`` gives it back: float32."""
    blocks = weight.reshape(-1, block, weight.shape[1])
    scale = (blocks.abs().amax(1, keepdim=True) / _LIMIT).clamp(min=torch.finfo(torch.float16).tiny)
    scale = scale.half().float()
    return (blocks / scale).round_().clamp_(-_LIMIT, _LIMIT).mul_(scale).reshape(weight.shape)


def _scaled(mean_abs: Tensor, alpha: float) -> Tensor:
    scale = mean_abs.clamp(min=_LEAST) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()
