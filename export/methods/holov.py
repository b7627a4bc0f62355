"""holov: per image region, within its budget, the tokens with the most class-token attention.

HoloV (Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context
Retention", NeurIPS 2025, arXiv 2510.02912), after the published code. The question is not read.

Input: the projected tokens ``[B,N,D]`` and the class token's attention ``[B,N]`` (families without one: the
attention a patch receives). Output: **at most** ``keep`` tokens, in raster order. ``count`` is their number.

1. The tokens in raster order are cut into ``runs`` runs of equal length (N / 16 tokens, not two-dimensional
   windows).
2. v(i) = variance of the cosines of token i and the other tokens of its run. a = 1000 attention. The score of
   a token is a + alpha v mean(a) / (mean(v) + 1e-6), with means over its run. The score of a run is the mean
   of its tokens' scores.
3. A run's quota is its share of all scores, times ``keep``, rounded down. The remainder goes to the runs with
   the largest shares, one token each.
4. Each run keeps as many tokens as its quota, those of the highest *attention*.

Quirks of the published code that are kept:

* v is divided by its own mean, so the variance has hardly any influence unless it is about 1e-6.
* The cosine of a token with itself counts as 0 among the deviations from the mean.
* The part of a quota above a run's length is lost. The publication then feeds rows of zeros to the language
  model; here there are fewer rows. ``surplus="refill"`` gives the lost part to the most attended of the other
  tokens, so that ``keep`` tokens stay.

The publication orders rows by run and attention and renumbers positions. Here rows are in raster order.

If N is no multiple of ``runs``, the first runs are one token longer. As published, the attention in a run of
one token is not scaled by 1000. Our reading: ``keep`` = N keeps all tokens; shares are rounded to 2^-16 of a
token, so that equal shares tie on every engine; ties go to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveate.export.pruning import selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import saliency, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Quotas for runs.

    The module's docstring explains the options; ``layer`` is the layer of the attention.
    """

    fills = False

    runs: int = option(16, 1, 4096)
    alpha: float = option(0.09, 0, 1000)
    surplus: Literal["lose", "refill"] = "lose"
    layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return (tap(spec, saliency(spec), self.layer),)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        long, short = size % self.runs, size // self.runs  # the first `long` runs are `short` + 1
        edge = long * (short + 1)
        run = torch.where(index < edge, index // (short + 1), long + (index - edge) // max(short, 1))
        attention = next(iter(taps.values())).float()
        quota = self.quotas(similarity.cosines(tokens), attention, run, keep)
        place = selection.rank_within(attention, run)
        mask = (place < _of_run(quota, run)) | (index < (keep // size) * size)
        if self.surplus == "refill":
            mask = selection.rank(torch.where(mask, attention + 2, attention)) < keep
        return selection.at_most(tokens, mask, keep)

    def quotas(self, similar: Tensor, attention: Tensor, run: Tensor, keep: Keep) -> Tensor:
        """Return the number of tokens that each run keeps, ``[B,P]`` float32.

        ``run [N]`` is each token's run.
        """
        index = torch.arange(self.runs, device=run.device)
        member = (run[:, None] == index).float()  # [N,P]
        length = member.sum(0)

        def mean(x: Tensor) -> Tensor:
            return (x[:, :, None] * member).sum(1) / length.clamp(min=1)

        together = run == run[:, None]
        others = (_of_run(length, run) - 1).clamp(min=1)
        token = torch.arange(run.shape[0], device=run.device)
        cosine = torch.where(together & (token != token[:, None]), similar, 0.0)
        deviation = cosine - (cosine.sum(-1) / others)[:, :, None]
        variance = torch.where(together, deviation * deviation, 0.0).sum(-1) / others
        salient = 1000 * attention
        scale = mean(salient) / (mean(variance) + 1e-6)
        score = mean(salient + self.alpha * variance * _of_run(scale, run))
        score = torch.where(length > 1, score, mean(attention))
        fine = 65536.0
        share = (score / (score.sum(1, keepdim=True) + 1e-6) * keep * fine).round()
        whole = (share / fine).floor()
        return whole + (selection.rank(share) < keep - whole.sum(1, keepdim=True)).float()


def _of_run(value: Tensor, run: Tensor) -> Tensor:
    """Look up the ``value [...,P]`` of each token's ``run [N]``: ``[...,N]``."""
    return value.index_select(-1, run)
