"""Merging of tokens into rows, and the row that each token went into.

Functions take and return tensors and follow the rules in ``pruning/pre_llm.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mix", "owners"]

_LIGHT = 1e-30  # weights up to this count as 0


def mix(rows: Tensor, own: Tensor, tokens: Tensor, share: Tensor) -> Tensor:
    """Merge ``tokens [B,N,D]`` into ``rows [B,R,D]`` by weighted means: ``[B,R,D]``.

    ``own [B,R]`` are the weights of the rows, ``share [B,R,N]`` those of the tokens in each row. A row that
    no token is merged into stays bit for bit.
    """
    added = share.sum(-1, keepdim=True)
    mixed = added > _LIGHT
    own, added = torch.where(mixed, own[:, :, None], 1.0), torch.where(mixed, added, 0.0)
    total = own * rows.float() + torch.matmul(torch.where(mixed, share, 0.0), tokens.float())
    return (total / (own + added)).to(rows.dtype)


def owners(kept: Tensor, into: Tensor) -> Tensor:
    """Return, for each token, the row of ``kept [B,R]`` that it is merged into: ``[B,N]`` int64, -1 for none.

    ``into [B,N]`` names the kept token that each token goes into, -1 for none.
    """
    row = torch.arange(kept.shape[1], device=kept.device)[:, None]
    return torch.where((kept[:, :, None] == into[:, None, :]) & (into >= 0)[:, None, :], row, -1).amax(1)
