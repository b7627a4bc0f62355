"""Pruners inside the language model: before which layers they prune, and which rows they select there.

An in-LLM pruner names its ``prune_layers`` and marks the visual rows that stay at each of them. It reads a
``PromptState``: the prompt's hidden states there, and the scoring layer's queries and keys. The graph
``pruner.<i>`` moves the rows that stay to the front. Segment ``llm.<i+1>`` receives only these rows.

The rules in ``pruning/pre_llm.py`` apply here too. No shape depends on data: a pruner returns as many rows as
it gets. Rows are selected for each image on its own; ``image`` holds the image's number for every row.
Methods see only the rows of the current chunk: keys of earlier turns, which are in the kv cache, take no part
in a softmax.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.engines.errors import UserError
from foveate.export.pruning import selection
from foveate.export.pruning.method import SingleMethod
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec

__all__ = ["InLLMPruner", "PruneLayer", "in_proportion"]


@dataclass(frozen=True)
class PruneLayer:
    """Prune before ``layer``. The weights of layer ``scored`` score that layer's own input."""

    layer: int
    scored: int


@dataclass(frozen=True)
class InLLMPruner(SingleMethod):
    """Base class of methods that prune the prompt before one or several layers of the language model."""

    merges: ClassVar[bool] = False
    """True when rows may be mixtures of rows."""

    carries: ClassVar[tuple[str, ...]] = ()
    """Names of per-row values that a stage passes on to the next one (``PromptState.carried``)."""

    @property
    def fills(self) -> bool:
        """True when exactly its budget stays of an image; False when ``leaves`` gives an upper bound."""
        return True

    @property
    def in_llm(self) -> InLLMPruner:
        """The method itself."""
        return self

    @abstractmethod
    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        """Return where the prompt is pruned, in ascending order of ``layer``.

        Stages are counted in this order. Raises UserError (code 2) when the decoder has no such layer.
        """

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        """Name the inputs of ``stage``'s graph besides ``hidden``, ``scored``, ``image`` and ``keep``.

        Name only what the method uses: TensorRT refuses a graph with an unused input. ``inputs_embeds``
        exists only at the first stage.
        """
        return ()

    @abstractmethod
    def select(self, stage: int, state: PromptState) -> Tensor:
        """Mark the visual rows that stay at ``stage``: ``[1,T]`` bool; text rows are ignored."""

    def prune(self, stage: int, state: PromptState) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Move the rows that stay to the front.

        Returns ``tokens [1,T,D]``, which is ``hidden`` in the new order; ``kept [1,T]`` int64, the old index
        of each row (-1 for a mixture and behind the last row); ``count [1]`` int64, the number of rows that
        stay; and the carried values in the new order, ``[1,T]`` each.
        """
        order, count = selection.packed(~state.visual | self.select(stage, state))
        index = torch.arange(order.shape[1], device=order.device)
        kept = torch.where(index < count[:, None], order, -1)
        carried = tuple(value.gather(1, order) for value in self.carry(state))
        return selection.gather(state.hidden, order), kept, count, carried

    def carry(self, state: PromptState) -> tuple[Tensor, ...]:
        """Return the values of ``carries``, ``[1,T]`` each, in the order before the rows move.

        The default passes on the values of the stage before. A method may compute new ones.
        """
        return tuple(state.carried[name] for name in self.carries)

    def prune_layer(self, spec: DecoderSpec, layer: int, scored: int) -> PruneLayer:
        """Make a PruneLayer. Raises UserError (code 2) when the decoder has no such layers."""
        if not (0 <= scored <= layer and 0 < layer < spec.num_layers):
            raise UserError(
                f"{self.name} cannot prune before layer {layer} "
                f"| the decoder has layers 0..{spec.num_layers - 1}, and layer 0 always sees every token "
                "| set other layers with --set",
                code=2,
            )
        return PruneLayer(layer, scored)


def in_proportion(shares: tuple[float, ...], spec: DecoderSpec) -> tuple[int, ...]:
    """Return the layers at ``shares`` of the decoder's depth, strictly ascending and at least 1."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(round(share * spec.num_layers), layers[-1] + 1 if layers else 1))
    return tuple(layers)
