"""sparsevlm: tokens that relevant question tokens attend to most, at three depths; others as cluster means.

SparseVLM (Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", ICML 2025, arXiv 2410.04417), after the published code. The code has fixed lists of token numbers
where the paper derives them from a rank.

Input: the prompt as it enters the decoder, and as it enters and leaves each layer in ``layers``. Output:
after each of these layers, exactly the stage's number of visual tokens of each image in their order, then
(version 1) their clusters, and all text.

1. *Raters* are chosen once, at the first cut: the tokens of the text behind the images whose m is above the
   mean. m = mean over visual tokens of softmax over that text of H_v H_t^T, where H are the decoder's input
   embeddings.
2. The score of a visual token in a layer is the attention that it receives from the raters, rotary embedding
   included, with a softmax over all keys of the prompt, mean over heads and raters. The tokens with the
   highest scores stay.
3. *Recycling*, in version 1: of the d dropped tokens the r = int(0.3 d) + 1 with the highest scores become
   int(r / 10) + 1 clusters. The clusters are density peaks over the k nearest neighbours (DPC-kNN), where k
   is the number of clusters and distances are divided by sqrt(D); every token goes to the nearest peak. A
   cluster is the mean of its tokens, and competes like a token at later cuts.

``version`` 1, the default, is the code of the ICML paper (1.5 in its release notes). Tables of SparseVLM
since 2025 go back to it. Positions are renumbered. ``version`` 2 is SparseVLM+ of the same repository. It has
no recycling, and position ids stay those of the whole prompt. Attention is divided by what rotary embedding
alone would give (queries and keys of ones). Only the ``heads`` heads with the largest attention from the
raters to the images count (14 of 32 in the code).

``keep`` is the mean over the layers as the authors count it: clusters count, and a layer that prunes counts
as pruned although it still sees all tokens. The published numbers are 64, 96, 128 and 192 of 576. Numbers
between them, and from 192 to all, are interpolated in logarithms; below 64 they shrink in proportion.
``layers`` are 2, 6, 15 of 32, and in proportion for decoders of another depth.

Our reading:

* Several images share the raters; each has its own budget and clusters.
* m is above the mean when it exceeds it by 1e-5 of the mean. If no token does, all of that text rates;
  without text the last token rates.
* A stage whose budget is all tokens drops none and makes no cluster. The published code drops one.
* Mutual neighbours are equally dense. The published code lets added noise decide; here the first counts as
  denser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.engines.errors import UserError
from foveate.export.networks.onnx_ops import loop, put
from foveate.export.pruning import selection, similarity
from foveate.export.pruning.budgets import SMALLEST_SHARE, Points
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer, in_proportion
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.pruning.selection import Keep, packed
from foveate.export.spec import DecoderSpec, ModelSpec
from foveate.runtime.llm.budget import stage_keep

__all__ = ["Method"]

Number = TypeVar("Number", int, Tensor)

_FAR = 1e18  # its square is still finite in float32
_AT_ONCE = 64
"""Raters per iteration of the loop."""
_LISTS = {
    "1": {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)},
    "2": {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)},
}
_OF = 576


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Attention of the question's raters, at three layers. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    carries: ClassVar[tuple[str, ...]] = ("raters",)

    position_mode: PositionMode | None = None  # type: ignore[assignment]  # see __post_init__
    version: Literal["1", "2"] = "1"
    layers: tuple[int, ...] | None = None
    heads: int = option(14, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position_mode is None:  # the published mode of the version
            object.__setattr__(self, "position_mode", "compact" if self.version == "1" else "keep")

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        if self.layers is None:
            return tuple(
                self.prune_layer(spec, x, x - 1) for x in in_proportion((3 / 32, 7 / 32, 16 / 32), spec)
            )
        if len(self.layers) != 3 or sorted(set(self.layers)) != list(self.layers):
            raise UserError(
                f"sparsevlm prunes behind three layers | got layers {self.layers}, "
                "expected three in ascending order | for example --set layers=2,6,15",
                code=2,
            )
        return tuple(self.prune_layer(spec, x + 1, x) for x in self.layers)

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        lists = _LISTS[self.version]
        least = min(lists)
        return {
            f"pruner.{stage}": (
                (SMALLEST_SHARE, SMALLEST_SHARE * lists[least][stage] / least),
                *((keep / _OF, numbers[stage] / _OF) for keep, numbers in lists.items()),
                (1.0, 1.0),
            )
            for stage in range(3)
        }

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """Return the rows after each stage. The clusters of version 1 count, since they are rows, too."""
        if self.version == "2":
            return {}
        total, left = entered, {}
        for stage, points in self.budgets(spec).items():
            lost = max(0, entered - stage_keep(points, keep, total))
            entered -= lost - (_clusters(lost) if lost else 0)
            left[stage] = entered
        return left

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        return ("position_ids",) if stage else ("position_ids", "inputs_embeds")

    def carry(self, state: PromptState) -> tuple[Tensor, ...]:
        return (_raters(state).to(state.hidden.dtype),)

    def select(self, stage: int, state: PromptState) -> Tensor:
        return state.best_of_image(self._score(state), state.keep)

    def prune(self, stage: int, state: PromptState) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        if self.version == "2":
            return super().prune(stage, state)
        score = self._score(state)
        stays = state.best_of_image(score, state.keep)
        number, peak, hidden = _recycled(state, score, state.visual & ~stays)
        order, count = _inserted(state, ~state.visual | stays, peak, number)
        index = torch.arange(order.shape[1], device=order.device)
        kept = torch.where((index < count[:, None]) & ~peak.gather(1, order), order, -1)
        return (
            selection.gather(hidden, order),
            kept,
            count,
            tuple(value.gather(1, order) for value in self.carry(state)),
        )

    def _score(self, state: PromptState) -> Tensor:
        """Return the score of each row: ``[1,T]`` float32."""
        received = _received(state, _raters(state), biased=self.version == "2")
        if self.version == "1":
            return received.mean(1)
        seen = torch.where(state.visual[:, None], received, 0.0).sum(-1)
        chosen = (selection.rank(seen) < self.heads).float()
        return (received * chosen[:, :, None]).sum(1) / min(self.heads, received.shape[1])


def _raters(state: PromptState) -> Tensor:
    """Mark the raters: ``[1,T]`` bool."""
    if "raters" in state.carried:
        return state.carried["raters"] > 0.5
    index = torch.arange(state.image.shape[1], device=state.image.device)
    text = index > torch.where(state.visual, index, -1).amax(1, keepdim=True)
    embeds = state.inputs_embeds.float()
    likeness = torch.where(text[:, None], torch.matmul(embeds, embeds.transpose(1, 2)), -_FAR)
    weight = state.visual.float() / state.visual.float().sum(1, keepdim=True).clamp(min=1)
    mean = torch.matmul(weight[:, None], likeness.softmax(-1))[:, 0]
    telling = text & (mean * text.float().sum(1, keepdim=True) > 1 + 1e-5)
    telling = telling | (text & ~telling.any(1, keepdim=True))
    return telling | ((index == index[-1]) & ~telling.any(1, keepdim=True))


def _received(state: PromptState, raters: Tensor, biased: bool) -> Tensor:
    """Return the mean attention of the ``raters [1,T]`` to each row, per head: ``[1,H,T]`` float32.

    ``biased``: attention is divided by what rotary embedding alone gives. A loop takes ``_AT_ONCE`` raters at
    a time, since no shape may depend on their number.
    """
    order, number = packed(raters)[0], raters.to(torch.int64).sum(1)
    scale = state.layer.head_dim**-0.5
    queries = state.queries(rotated=True).float() * scale
    keys = state.keys(rotated=True).float().transpose(2, 3)
    turned = _turned_ones(state) * scale**0.5 if biased else None
    index = torch.arange(raters.shape[1], device=raters.device)
    some = torch.arange(_AT_ONCE, device=raters.device)

    def more(done: Tensor, received: Tensor) -> Tensor:
        return (done < number).any()

    def listen(done: Tensor, received: Tensor) -> tuple[Tensor, ...]:
        row = order.gather(1, torch.minimum(done + some, index.amax(0))[None])
        scores = torch.matmul(queries.index_select(2, row[0]), keys)
        attention = torch.where(index <= row[:, None, :, None], scores, -_FAR).softmax(-1)
        if turned is not None:
            bias = torch.matmul(selection.gather(turned, row), turned.transpose(1, 2))[:, None]
            attention = attention / torch.where(bias.abs() < 1e-6, 1e-6, bias)
        share = (done + some < number).float() / number
        return done + _AT_ONCE, received + torch.matmul(share[None, None, None], attention)[:, :, 0]

    done = torch.zeros((), dtype=torch.int64, device=raters.device)
    nothing = torch.zeros(1, state.layer.heads, raters.shape[1], device=raters.device)
    return loop(more, listen, (done, nothing))[1]


def _turned_ones(state: PromptState) -> Tensor:
    """Return rows of ones after rotary embedding: ``[1,T,Dh]`` float32.

    Their entries are in another order.
    """
    *tables, index = state.rope_of(state.position_ids)
    cos, sin = (F.embedding(index, table).float() for table in tables)
    return torch.cat((cos - sin, cos + sin), -1)


def _recycled(state: PromptState, score: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster each image's ``dropped [1,T]`` tokens.

    Returns the number of each peak's cluster ``[1,T]`` float32, the peaks ``[1,T]`` bool, and ``hidden
    [1,T,D]`` with the means of the clusters in the peaks' rows. At most half of an image's tokens are
    recycled, since one token stays; M = T // 2 + 1 rows are enough for them.
    """
    lost = (state.same & dropped[:, None]).float().sum(-1).to(torch.int64)
    among = dropped & (selection.rank(score, state.same & dropped[:, None]) < _taken(lost))
    order, count = packed(among)
    index = torch.arange(score.shape[1] // 2 + 1, device=score.device)
    some, there = order[:, index], index < count[:, None]
    image, clusters = state.image.gather(1, some), _clusters(lost.gather(1, some))
    same = image[:, None] == image[:, :, None]
    pairs = same & there[:, :, None] & there[:, None]
    before = selection.gather(state.hidden, some)
    distance = torch.where(pairs, _distances(before.float(), there), _FAR)
    number = selection.rank(_standing(distance, same, clusters, (3 * score.shape[1] + 10) // 100 + 1), pairs)
    peak = there & (number < clusters)
    to_peak = torch.where(peak[:, None], distance, _FAR)
    closest = pairs & peak[:, None] & (to_peak == to_peak.amin(-1, keepdim=True))
    goes = torch.where(closest, number[:, None], _FAR).amin(-1)
    goes = torch.where(peak, number, goes)
    member = (pairs & peak[:, :, None] & (goes[:, None] == number[:, :, None])).float()
    mean = torch.matmul(member, before.float()) / member.sum(-1, keepdim=True).clamp(min=1)
    after = torch.where(peak[:, :, None], mean.to(before.dtype), before)
    nothing = torch.zeros_like(score)
    hidden = put(state.hidden, torch.stack((torch.zeros_like(some), some), 2)[0], after[0])
    return nothing.scatter(1, some, number), nothing.scatter(1, some, peak.float()) > 0, hidden


def _taken(lost: Number) -> Number:
    """Return the number of the ``lost`` tokens that are recycled."""
    return lost * 3 // 10 + 1


def _clusters(lost: Number) -> Number:
    return _taken(lost) // 10 + 1


def _standing(distance: Tensor, same: Tensor, clusters: Tensor, most: Keep) -> Tensor:
    """Score each row as a density peak: ``[1,M]``, its density times its distance to the nearest denser row.

    The densest row takes its distance to the farthest row. ``distance [1,M,M]`` is ``_FAR`` between rows that
    are not compared. ``same [1,M,M]`` are the pairs of one image. ``clusters [1,M]`` is at most ``most``.
    """
    nearest = distance.topk(most, largest=False).values
    counts = torch.arange(most, device=distance.device) < clusters[:, :, None]
    sparse = torch.where(counts, nearest * nearest, 0.0).sum(-1) / clusters
    compared = distance < _FAR
    denser = compared & selection.ahead(-sparse)
    row = torch.where(compared, distance, 0.0).amax(-1)
    farthest = torch.where(same, row[:, None], 0.0).amax(-1, keepdim=True)
    return torch.where(denser, distance, farthest).amin(-1) * (-sparse).exp()


def _distances(x: Tensor, there: Tensor) -> Tensor:
    """Return the distances between the rows of ``x [1,M,D]`` marked by ``there [1,M]``: ``[1,M,M]`` float32.

    Distances are divided by sqrt(D). They are 0 between copies, and the same in both directions.
    """
    seen = there.float()
    mean = torch.matmul(seen[:, None], x) / seen.sum(1).clamp(min=1)
    x = (x - mean) * seen[:, :, None]
    products = torch.matmul(x, x.transpose(1, 2))
    length = similarity.diagonal(products)
    squared = length[:, :, None] + length[:, None] - (products + products.transpose(1, 2))
    squared = torch.where(squared > 1e-6 * length.amax(1)[:, None, None], squared, 0.0)
    return (squared / x.shape[2]).sqrt()


def _inserted(state: PromptState, stays: Tensor, peak: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as ``packed``, with the ``peak`` rows among the rows that stay.

    They come behind the last visual row of their image, by ``number``.
    """
    size = stays.shape[1]
    index = torch.arange(size, device=stays.device)[None]
    last = torch.where(state.same, index, -1).amax(-1)
    key = torch.where(peak, last * (size + 1) + 1 + number.to(torch.int64), index * (size + 1))
    live = stays | peak
    ahead = live[:, None] & (key[:, None] < key[:, :, None])
    count = live.to(torch.int64).sum(1)
    dead = count[:, None] + index - live.to(torch.int64).cumsum(1)
    place = torch.where(live, ahead.to(torch.int64).sum(-1), dead)
    return torch.zeros_like(place).scatter(1, place, index), count
