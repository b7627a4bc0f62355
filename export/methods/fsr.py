"""fsr: tokens with high attention and relevance, then the farthest from these; dropped ones are merged in.

FSR (Tong, Bai, Zhu, Jiang, Liu, "Focus-Scan-Refine: From Human Visual Perception to Efficient Visual Token
Pruning", arXiv 2602.05809). No code is public; this follows the paper's equations, and the numbers below are
the paper's.

Input: the projected tokens v ``[B,N,D]``, the class token's attention ``[B,N]`` (families without one: the
attention a patch receives), and for relevance CLIP's joint space ``[B,N,J]``, ``[B,S,J]`` or the question's
words as the language model embeds them ``[B,W,D]``. Output: exactly ``keep`` tokens in raster order. Tokens
of the scan are mixtures, and ``kept`` is the token whose place each takes.

1. *Focus.* s = attention (1), r = cosine of patch and text (2), phi = mm(r)^alpha mm(s)^beta (3), mm = minmax
   over the image. The tokens of highest phi stay: the fewest that hold the share ``rho`` of its sum (4).
2. *Scan.* The rest of the budget goes, one by one, to the token farthest (1 - cosine) from all that stay
   already (5).
3. *Refine.* Of the tokens that do not stay, the ``kappa`` |scan| tokens most similar to a token of the scan
   are merged into that token (8), weighted by phi (9). Focus tokens stay as they are.

The paper uses alpha = 3, beta = 1, rho = 0.9 and kappa = 1 at every budget. Our reading, where the paper is
silent:

* The attention is that of the layer that gives the features (``layer``).
* Cosines among tokens are taken after the projector (``structure``).
* The focus takes at most ``keep`` tokens.
* Relevance is the mean over text segments. ``relevance`` "auto" is "clip" in families with the joint space,
  else "embeddings". The paper leaves relevance out on Qwen2.5-VL, which is "none".
* The sign is positive, as the paper writes it, although others found that CLIP's patches point away from what
  they show.
* minmax adds 1e-6 to its denominator.
* A scan token stays as it is when neither it nor the tokens merged into it have weight.
* Ties go to the first token. Positions are renumbered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import merging, selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import question_taps, saliency, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Focus, scan, refine. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    relevance: Literal["auto", "clip", "embeddings", "none"] = "auto"
    sign: Literal["positive", "negative"] = "positive"
    layer: int = -1
    alpha: float = option(3.0, 0, 100)
    beta: float = option(1.0, 0, 100)
    rho: float = option(0.9, 0, 1)
    kappa: float = option(1.0, 0, 1000)
    structure: Literal["projected", "features"] = "projected"

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        attention = tap(spec, saliency(spec), self.layer)
        features = ("features",) if self.structure == "features" else ()
        return attention, *features, *question_taps(self.relevance, spec)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        budget = torch.full((tokens.shape[0], 1), keep, dtype=torch.int64, device=tokens.device)
        phi = self.subject(tokens, taps)
        in_focus = torch.minimum(self.focus_size(phi), budget)
        focus = selection.rank(phi) < in_focus
        similar = similarity.cosines(taps.get("features", tokens))
        scan = selection.pick_farthest(1 - similar, focus, budget - in_focus)
        kept = selection.marked(focus | scan, keep)
        weight, anchor = self.merged(similar, phi, focus, scan)
        share = torch.where(anchor[:, None, :] == kept[:, :, None], weight[:, None, :], 0.0)  # [B,R,N]
        rows = merging.mix(selection.gather(tokens, kept), phi.gather(1, kept), tokens, share)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        into = torch.where(focus | scan, index, torch.where(weight > 0, anchor, -1))
        return rows, kept, selection.count(kept), merging.owners(kept, into)

    def subject(self, tokens: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """Return phi ``[B,N]`` float32."""
        s = similarity.minmax(next(iter(taps.values())).float()) ** self.beta
        if "text_embeds" not in taps and "clip_text" not in taps:
            return s
        cosine, asked = similarity.question_relevance(tokens, taps, self.sign)
        return torch.where(asked, similarity.minmax(cosine) ** self.alpha * s, s)

    def focus_size(self, phi: Tensor) -> Tensor:
        """Return the smallest number of tokens that hold ``rho`` of the sum of phi: ``[B,1]`` int64.

        Sums that differ by rounding errors only count as equal.
        """
        sums = phi.topk(phi.shape[1], dim=1).values.cumsum(1)
        needed = self.rho * (1 - 1e-6) * sums[:, -1:]
        return (sums < needed).to(torch.int64).sum(1, keepdim=True) + 1

    def merged(self, similar: Tensor, phi: Tensor, focus: Tensor, scan: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's weight and the scan token that it is merged into: ``[B,N]`` each.

        The weight is 0 for tokens that are not merged.
        """
        best, anchor = similarity.closest(similar, scan)
        stays = focus | scan
        place = selection.rank(torch.where(stays, -4.0, best))
        allowed = self.kappa * scan.float().sum(1, keepdim=True)
        return torch.where((place + 1 <= allowed) & ~stays, phi, 0.0), anchor
