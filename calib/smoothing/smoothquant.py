"""SmoothQuant: factors that move an activation's outliers into the weights, so that both fit into 8 bits.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv
2211.10438. Eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) for input channel j. Activations are divided by
s, and rows of W are multiplied by it. The paper uses alpha 0.5 for most models. Our reading: W_j are rows j
of all matrices that read X, and a channel that was never active, or that no matrix reads, keeps 1. The paper
smooths after norms; we also smooth before o and down (``fold``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ALPHA", "factors"]

ALPHA = 0.5
_LEAST = 1e-5


def factors(absmax: Tensor, weights: Sequence[Tensor], alpha: float = ALPHA) -> Tensor:
    """Return the factors of an input: float32 [in], all above 0.

    ``absmax`` [in] is the largest |x| of each channel, ``weights`` [in, out] are the matrices that read it.
    """
    reads = torch.stack([weight.abs().amax(1) for weight in weights]).amax(0)
    found = absmax.clamp(min=_LEAST) ** alpha / reads.clamp(min=_LEAST) ** (1 - alpha)
    return torch.where((absmax > 0) & (reads > 0), found.clamp(min=_LEAST), 1.0)
