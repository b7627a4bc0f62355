"""Pre-LLM pruners: pure functions from N visual tokens to fewer, between vision encoder and language model.

A pruner sees tensors only, never a model. A pruner that ranks tokens derives from ``ScoringPruner`` and
writes ``score``; the selection is done here. A pruner that picks tokens in a loop, or merges them, derives
from ``PreLLMPruner`` and writes ``reduce``.

Rules for ``reduce``, so that one graph serves ONNX Runtime and TensorRT:

* No shape depends on data: no nonzero, no boolean indexing.
* ``keep`` is a number that is known at run time only.
* Scores and selection are float32 or integers, whatever the tokens' dtype.
* New tensors are made on the tokens' device, which may be ``meta``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.export.pruning import selection
from foveate.export.pruning.method import SingleMethod
from foveate.export.pruning.selection import Keep
from foveate.export.spec import ModelSpec

__all__ = ["PreLLMPruner", "ScoringPruner"]


@dataclass(frozen=True)
class PreLLMPruner(SingleMethod):
    """Base class of pruners between the vision encoder and the language model."""

    source: ClassVar[Literal["projected", "features"]] = "projected"
    """Kind of tokens that ``reduce`` gets. With "features" the projector runs in the pruner's graph, after
    the method."""

    merges: ClassVar[bool] = False
    """True when rows may be mixtures of tokens. ``reduce`` then also returns the row that each token went
    into."""

    whole: ClassVar[bool] = False
    """Scope of ``reduce`` for images that are encoded in tiles.

    False: each tile by itself, with a share of the budget. True: all tokens of the image at once, as a
    ``grid`` of one row.
    """

    @property
    def fills(self) -> bool:
        """True when ``count`` always equals ``keep``; False when it depends on the image.

        There are then at most ``keep`` valid rows; rows behind ``count`` are 0 and their ``kept`` is -1.
        """
        return True

    @property
    def pre_llm(self) -> PreLLMPruner:
        """The method itself."""
        return self

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return the names of the taps that ``reduce`` reads (see ``pruning/taps.py``).

        They may depend on options. A method that can use one of several taps looks into ``spec.taps``.
        ``assemble`` refuses taps that the family does not offer, and names the methods that would work.
        """
        return ()

    def module(self, spec: ModelSpec) -> nn.Module | None:
        """Return the module that holds the method's trained weights (named ``pruner.*``), or None."""
        return None

    @abstractmethod
    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        """Return the tokens that stay.

        It takes:

        * ``tokens [B,N,D]`` in raster order of ``grid``.
        * ``taps``: the taps by the names that ``self.taps`` returned.
        * ``keep``: number of tokens to keep, 1..N.
        * ``grid``: rows and columns, N = rows * columns. Like ``keep`` they are known only at run time in
          families whose images vary in size.

        It returns:

        * ``tokens [B,R,D]`` in the dtype of the input. R depends on ``keep`` alone.
        * ``kept [B,R]`` int64: the token whose place each row takes. Places are distinct, and ascending
          unless the method says otherwise; -1 is a row without a place.
        * ``count [B]`` int64: the number of valid rows.
        * ``owner [B,N]`` int64, only from methods with ``merges``: the row that each token is part of, -1
          for none. A token whose place a row takes is part of that row.
        """


@dataclass(frozen=True)
class ScoringPruner(PreLLMPruner):
    """Base class of pruners that rank: exactly ``keep`` tokens with the best scores stay, first of equals."""

    @abstractmethod
    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]) -> Tensor:
        """Return a score per token, ``[B,N]`` float32; higher scores stay. Arguments as in ``reduce``."""

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        """Return the tokens with the highest scores, as ``PreLLMPruner.reduce`` does."""
        kept = selection.marked(selection.rank(self.score(tokens, taps, keep, grid)) < keep, keep)
        return selection.gather(tokens, kept), kept, selection.count(kept)
