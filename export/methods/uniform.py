"""uniform: evenly spaced tokens; a lower bound that ignores the image's content.

Any ``keep`` from 1 to N gives exactly that many tokens, by integer arithmetic at run time:

* ``layout="grid"``: about sqrt(keep * rows / columns) rows at even distances, and in each row its share of
  the tokens at even distances. If keep is a square fraction of the grid, this is the strided grid (24 x 24:
  keep 144 is stride 2, keep 64 is stride 3) with each token in the middle of its cell.
* ``layout="raster"``: even distances in raster order, like ``linspace`` but in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveate.export.pruning import selection
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Evenly spaced tokens: ``layout`` "grid" (two-dimensional) or "raster" (one-dimensional)."""

    layout: Literal["grid", "raster"] = "grid"

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.arange(keep, device=tokens.device)
        if self.layout == "grid":
            index = _on_grid(order, keep, *grid)
        else:
            index = (2 * order + 1) * tokens.shape[1] // (2 * keep)
        kept = index.repeat(tokens.shape[0], 1)
        return selection.gather(tokens, kept), kept, selection.count(kept)


def _on_grid(order: Tensor, keep: Keep, rows: int, columns: int) -> Tensor:
    """Return the indices of the ``order``-th of ``keep`` tokens spread over ``rows`` x ``columns``: int64."""
    odd = 2 * torch.arange(1, rows + 1, device=order.device) - 1
    used = (odd * odd * columns <= 4 * keep * rows).sum()  # sqrt(keep * rows / columns), rounded
    # keep <= used * columns
    used = torch.minimum(torch.maximum(used, (order[-1:] // columns + 1)), order[-1:] + 1)
    row = ((order + 1) * used - 1) // keep  # token `order` is in the row whose share it falls into
    first = row * keep // used
    share = (row + 1) * keep // used - first
    column = (2 * (order - first) + 1) * columns // (2 * share)
    return (2 * row + 1) * rows // (2 * used) * columns + column
