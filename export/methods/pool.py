"""pool: mean-pooled cells of the token grid; a lower bound that ignores the image's content.

Input: the projected tokens ``[B,N,D]``. Output: the means of r x c cells in raster order, r c <= ``keep``
(``count``). ``kept`` is the token in the middle of each cell.

1. r <= rows and c <= columns are chosen under r c <= keep so that the cells spread least. The spread is (rows
   / r)^2 + (columns / c)^2, a multiple of the mean squared distance of a token from its cell's centre. Among
   equal spreads the fewest rows win.
2. The token in row y and column x goes to the cell in row y r // rows and column x c // columns. A cell is
   the mean of its tokens.

If r and c divide the sides, this is adaptive average pooling. Otherwise adaptive pooling lets neighbouring
cells share tokens; here every token goes to one cell, and cells differ by a row or column. On 24 x 24 tokens,
``keep`` 64, 128 and 192 become 8 x 8, 11 x 11 and 12 x 16 cells. ``keep`` = N changes nothing. Positions are
renumbered. The question is not read. The method is our own and not from a publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning import merging, selection
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep

__all__ = ["Method"]

# Spreads are integers, so that every engine finds the same cells. ONNX Runtime 1.23.2 compares at most 32
# bits.
_UNIT = 2**14


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Average pooling. It has no options of its own."""

    fills = False
    merges: ClassVar[bool] = True

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        batch, size, _ = tokens.shape
        budget = torch.full((1, 1), keep, dtype=torch.int64, device=tokens.device)
        down, across = _cells(budget, grid)
        index, row = (torch.arange(n, device=tokens.device)[None] for n in (size, keep))
        y, x = selection.coordinates(index, grid[1])
        owner = y * down // grid[0] * across + x * across // grid[1]  # [1,N]
        middle = _middle(row // across, down, grid[0]) * grid[1] + _middle(row % across, across, grid[1])
        valid = row < down * across
        kept = torch.where(valid, middle, -1).repeat(batch, 1)
        others = (owner[:, None, :] == row[:, :, None]) & (index[:, None, :] != middle[:, :, None])  # [1,R,N]
        rows = selection.gather(tokens, kept.clamp(min=0))
        rows = merging.mix(rows, torch.ones_like(kept).float(), tokens, others.float().repeat(batch, 1, 1))
        rows = torch.where(valid[:, :, None], rows, torch.zeros_like(rows[:, :1, :1]))
        return rows, kept, valid.to(torch.int64).sum(1).repeat(batch), owner.repeat(batch, 1)


def _cells(budget: Tensor, grid: tuple[Keep, Keep]) -> tuple[Tensor, Tensor]:
    """Return rows and columns, ``[1,1]`` each, of the cells that spread least.

    There are at most ``budget [1,1]`` cells.
    """
    rows, columns = grid
    y, x = selection.coordinates(torch.arange(rows * columns, device=budget.device)[None], columns)
    down, across = y + 1, x + 1
    cells = down * across
    spread = (rows**2 * across**2 + columns**2 * down**2) * _UNIT // cells**2
    spread = torch.where(cells <= budget, spread, 2 * (rows**2 + columns**2) * _UNIT)
    y, x = selection.coordinates(selection.first_of(-spread), columns)
    return y + 1, x + 1


def _middle(cell: Tensor, cells: Tensor, length: int) -> Tensor:
    """Return the middle of the places 0..length - 1 that go to ``cell`` of ``cells``; of two the first."""
    start, end = (((cell + one) * length + cells - 1) // cells for one in (0, 1))
    return (start + end - 1) // 2
