"""greedyprune: the tokens most similar to the last token, none of them too similar to one already kept.

GreedyPrune (Pei, Sun, Fu, Wang, "GreedyPrune: Retenting Critical Visual Token Set for Large Vision Language
Models", arXiv 2506.13166). There is no public code, and we know only the paper's abstract and what others
wrote about it: the kept tokens maximise the sum of their saliency, no two of them may have a cosine above a
threshold tau, and they are found greedily.

Input: the prompt at the input of layer ``layer``. Output: before that layer, exactly ``keep`` visual tokens
of each image, in their order, and all text.

1. The saliency of a visual token is its cosine with the prompt's last token.
2. The most salient candidate stays, and all candidates whose cosine with it is above ``tau`` are dropped.
   This repeats until ``keep`` tokens stay or no candidate is left.
3. If there are too few tokens, the most salient of all others are added.

Our reading, from an independent implementation (which compares value vectors): the saliency, step 3, and
``tau`` 0.9. Our own choices: ``layer`` 2, as in FastV; hidden states are compared; position ids stay those of
the whole prompt; each image is pruned on its own. Cosines within 2^-22 are equal, and the first of equals
wins.

Step 2 is a loop in the graph. It looks at each token at most once, the most salient first, and ends when
enough stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.networks.onnx_ops import loop
from foveate.export.pruning import selection, similarity
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import PromptState
from foveate.export.spec import DecoderSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Salient and dissimilar tokens. The module's docstring explains the options."""

    our_reading: ClassVar[bool] = True
    reads_question: ClassVar[bool] = True

    position_mode: PositionMode = "keep"
    layer: int = option(2, 1)
    tau: float = option(0.9, -1, 1)

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        return (self.prune_layer(spec, self.layer, self.layer),)

    def select(self, stage: int, state: PromptState) -> Tensor:
        similar = similarity.cosines(state.hidden)
        place = selection.rank_within(similar[:, -1], state.image[0])
        same = (state.same & state.visual[:, None, :]).float()
        rivals = same * (similar > self.tau).float()
        picked = _pick(torch.where(state.visual, place, -1.0), same, rivals, state.keep)
        return state.best_of_image(torch.where(picked, similar.shape[1] - place, -place), state.keep)


def _pick(place: Tensor, same: Tensor, rivals: Tensor, keep: Tensor) -> Tensor:
    """Mark the tokens that no earlier pick excludes: ``[1,T]`` bool.

    At least ``keep [1,T]`` tokens of each image are marked, if so many exist. ``place [1,T]`` float32 is each
    token's turn in its image, -1 for text. ``same [1,T,T]`` (0 or 1) are the pairs of one image.
    ``rivals [1,T,T]`` (0 or 1) are the pairs of one image that exclude each other.
    """
    last = place.amax((0, 1))

    def more(turn: Tensor, out: Tensor, picked: Tensor, found: Tensor) -> Tensor:
        return ((place >= 0) & (found < keep)).any() & (turn <= last)

    def step(turn: Tensor, out: Tensor, picked: Tensor, found: Tensor) -> tuple[Tensor, ...]:
        new = ((place == turn) & (out == 0)).float()
        out = torch.maximum(out, (torch.matmul(new[:, None], rivals)[:, 0] > 0).float())
        return turn + 1, out, torch.maximum(picked, new), found + torch.matmul(new[:, None], same)[:, 0]

    none = torch.zeros_like(place)
    turn = torch.zeros((), device=place.device)
    return loop(more, step, (turn, none, none.clone(), none.clone()))[2] > 0
