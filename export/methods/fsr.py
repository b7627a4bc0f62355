"""fsr: tokens with high attention and relevance, then the farthest from these; dropped ones are merged in.

FSR (Tong, Bai, Zhu, Jiang, Liu, "Focus-Scan-Refine: From Human Visual Perception to Efficient Visual Token Pruning",
arXiv 2602.05809). No code is public; this follows the paper's equations, and the numbers below are the paper's.

In: the projected tokens v ``[B,N,D]``, the class token's attention ``[B,N]`` (families without one: the attention a patch
receives), and for relevance CLIP's joint space ``[B,N,J]``, ``[B,S,J]`` or the question's words as the language model
embeds them ``[B,W,D]``. Out: exactly ``keep`` tokens in raster order; tokens of the scan are mixtures, and ``kept`` is
where each stands.

1. *Focus.* s = attention (1), r = cosine of patch and text (2), phi = mm(r)^alpha mm(s)^beta (3), mm = minmax over the
   picture. The fewest tokens of highest phi that hold the share ``rho`` of its sum (4).
2. *Scan.* The rest of the budget goes, one by one, to the token farthest (1 - cosine) from all that stay already (5).
3. *Refine.* Of the tokens that do not stay, the ``kappa`` |scan| that are most similar to a token of the scan are
   merged into it (8), weighted by phi (9). Focus tokens stay as they are.

alpha = 3, beta = 1, rho = 0.9, kappa = 1 at every budget. Our reading where the paper is silent: attention of the layer
that gives the features (``layer``); cosines among tokens after the projector (``structure``); the focus takes no
more than ``keep``; relevance is the mean over text segments; ``relevance`` "auto" is "clip" where the family has the joint
space and else "embeddings" (the paper leaves relevance out on Qwen2.5-VL: "none"); the sign is positive as the paper
writes it, although others found CLIP's patches to point away from what they show; minmax adds 1e-6 to its denominator;
an anchor without weight whose merged tokens have none either stays as it is; ties go to the first token; positions are
renumbered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import method, selection
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(method.Method):
    """Focus, scan, refine. The options are explained in the module's docstring."""

    reads_question: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    relevance: Literal["auto", "clip", "embeddings", "none"] = "auto"
    sign: Literal["positive", "negative"] = "positive"
    layer: int = -1
    alpha: float = method.option(3.0, 0, 100)
    beta: float = method.option(1.0, 0, 100)
    rho: float = method.option(0.9, 0, 1)
    kappa: float = method.option(1.0, 0, 1000)
    structure: Literal["projected", "features"] = "projected"

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        attention = method.tap(spec, selection.saliency(spec), self.layer)
        features = ("features",) if self.structure == "features" else ()
        return attention, *features, *selection.question_taps(self.relevance, spec)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: method.Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        budget = torch.full((tokens.shape[0], 1), keep, dtype=torch.int64, device=tokens.device)
        phi = self.subject(tokens, taps)
        in_focus = torch.minimum(self.focus_size(phi), budget)
        focus = method.rank(phi) < in_focus
        similar = selection.cosines(taps.get("features", tokens))
        scan = selection.pick_farthest(1 - similar, focus, budget - in_focus)
        kept = method.marked(focus | scan, keep)
        weight, anchor = self.merged(similar, phi, focus, scan)
        share = torch.where(anchor[:, None, :] == kept[:, :, None], weight[:, None, :], 0.0)  # [B,R,N]
        rows = selection.mix(method.gather(tokens, kept), phi.gather(1, kept), tokens, share)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        into = torch.where(focus | scan, index, torch.where(weight > 0, anchor, -1))
        return rows, kept, method.count(kept), selection.owners(kept, into)

    def subject(self, tokens: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """phi ``[B,N]`` float32."""
        s = selection.minmax(next(iter(taps.values())).float()) ** self.beta
        if "text_embeds" not in taps and "clip_text" not in taps:
            return s
        cosine, asked = selection.question_relevance(tokens, taps, self.sign)
        return torch.where(asked, selection.minmax(cosine) ** self.alpha * s, s)

    def focus_size(self, phi: Tensor) -> Tensor:
        """The fewest tokens that hold ``rho`` of the sum: ``[B,1]`` int64. Sums that are equal but for rounding, are."""
        sums = phi.topk(phi.shape[1], dim=1).values.cumsum(1)
        needed = self.rho * (1 - 1e-6) * sums[:, -1:]
        return (sums < needed).to(torch.int64).sum(1, keepdim=True) + 1

    def merged(self, similar: Tensor, phi: Tensor, focus: Tensor, scan: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each token that is merged into one of the scan, else 0, and which that is: ``[B,N]`` each."""
        best, anchor = selection.closest(similar, scan)
        stays = focus | scan
        place = method.rank(torch.where(stays, -4.0, best))
        allowed = self.kappa * scan.float().sum(1, keepdim=True)
        return torch.where((place + 1 <= allowed) & ~stays, phi, 0.0), anchor
