"""star: tokens with the most attention from other patches; in a middle layer, from the question's tokens.

STAR (Guo et al., "STAR: Stage-Wise Attention-Guided Token Reduction for Efficient Large Vision-Language
Models Inference", arXiv 2505.12359). There is no public code, and we know only the paper's abstract and what
others wrote about it. They give both stages as formulas over embeddings, without projections or heads.

Input: the projected tokens ``[B,N,D]``, and the prompt at the input of layer ``layer``. Output: exactly n1
tokens in raster order before the language model, and exactly ``keep`` tokens of each image before layer
``layer``.

1. A = softmax(H_v H_v^T / sqrt(d)) of the projected tokens H_v. The n1 tokens with the highest mean attention
   stay.
2. C = softmax(H_v H_q^T / sqrt(d)) of the hidden states at layer ``layer``; H_q are those of the text behind
   the image. The ``keep`` tokens with the highest mean over the text stay.

As printed, both means are taken along the axis of the softmax and are the same for every token. Our reading:
the softmax is over the visual tokens, for each token that attends (1) or each word that attends (2), and a
token's score is the attention that it receives. In the paper the user chooses the layer and the reduction of
each stage; we do not know the numbers behind its tables. Our choices: ``keep`` is the number after the second
stage, and n1 = N (keep / N)^``early``. The default ``early`` 0.5 makes both stages keep the same share; 0
leaves out the first stage, 1 the second. ``layer`` is the middle one. The paper counts the answer among the
words; at prefill there is none. Positions are renumbered. Scores within 2^-20 of the mean score are equal,
and the first of equals wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning.budgets import SMALLEST_SHARE, Points
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer, in_proportion
from foveate.export.pruning.method import SingleMethod
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import ScoringPruner
from foveate.export.pruning.prompt_state import PromptState
from foveate.export.pruning.selection import Keep
from foveate.export.spec import DecoderSpec, ModelSpec

__all__ = ["Method"]

_FINE = 2.0**20


@dataclass(frozen=True)
class Method(SingleMethod):
    """Two stages. The module's docstring explains the options."""

    our_reading: ClassVar[bool] = True
    reads_question: ClassVar[bool] = True

    layer: int | None = option(None, 1)
    early: float = option(0.5, 0, 1)

    @property
    def pre_llm(self) -> _SelfAttention | None:
        """The first stage, unless ``early`` is 0."""
        return _SelfAttention(self.position_mode) if self.early > 0 else None

    @property
    def in_llm(self) -> _CrossAttention | None:
        """The second stage, unless ``early`` is 1."""
        return _CrossAttention(self.position_mode, self.layer) if self.early < 1 else None

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        """Return the first stage's share, keep / N to the power of ``early``."""
        if self.early == 0:
            return {}
        return {"pruner": ((SMALLEST_SHARE, SMALLEST_SHARE**self.early), (1.0, 1.0))}


@dataclass(frozen=True)
class _SelfAttention(ScoringPruner):
    """The first stage, a pre-LLM pruner."""

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]) -> Tensor:
        tokens = tokens.float()
        scores = torch.matmul(tokens, tokens.transpose(1, 2)) * tokens.shape[2] ** -0.5
        return (scores.softmax(-1).sum(1) * _FINE).round()


@dataclass(frozen=True)
class _CrossAttention(InLLMPruner):
    """The second stage, an in-LLM pruner."""

    layer: int | None = None

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        layer = in_proportion((0.5,), spec)[0] if self.layer is None else self.layer
        return (self.prune_layer(spec, layer, layer),)

    def select(self, stage: int, state: PromptState) -> Tensor:
        hidden = state.hidden.float()
        index = torch.arange(hidden.shape[1], device=hidden.device)
        words = ~state.visual[:, :, None] & state.visual[:, None] & (index < index[:, None])
        scores = torch.matmul(hidden, hidden.transpose(1, 2)) * hidden.shape[2] ** -0.5
        scores = torch.where(words, scores, -1e30)  # [1, words, tokens]
        weight = (scores - scores.amax(-1, keepdim=True)).exp() * words.float()
        received = weight / torch.matmul(weight, state.same.float()).clamp(min=1e-30)
        number = words.float().sum(1).clamp(min=1)
        fine = received.sum(1) / number * state.rows_of_image().float() * _FINE
        return state.best_of_image(fine.round(), state.keep)
