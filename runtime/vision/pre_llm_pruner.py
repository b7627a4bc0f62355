"""The pre-LLM pruner: runs the graph ``pruner`` on each piece of an image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.engines.buffer import Feed
from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.finite import run_finite
from foveate.runtime.images.token_layout import split
from foveate.runtime.vision.features import ImageFeatures
from foveate.runtime.vision.pieces import Piece, piece_of

__all__ = ["PreLLMPruner"]


class PreLLMPruner:
    """The graph ``pruner``. ``newline`` [1,D] is the row that ends a line, for models that have one."""

    def __init__(self, bundle: Bundle, engine: Engine, newline: Rows | None) -> None:
        self.engine, self._bundle, self._newline = engine, bundle, newline
        self._whole = bundle.manifest.method.whole  # it sees all tokens of an image at once

    @property
    def most_keep(self) -> int:
        """Return the largest budget that the engine takes."""
        keep = self.engine.spec.input("keep").value
        assert keep is not None  # the budget is an input whose value the graph's shapes depend on
        return keep.max

    def prune(self, features: ImageFeatures, question: Mapping[str, Feed], budget: int) -> list[Piece]:
        """Return what is left of each piece of an image.

        ``question`` holds the inputs of ``question.QuestionReader``. Newline tokens get what the ``budget``
        leaves after all others.
        """
        layout, spec = features.layout, self.engine.spec
        pieces = [layout.whole] if self._whole else layout.pieces
        shares = split(min(budget, layout.whole.size), [piece.size for piece in pieces])
        given = {
            name: self.engine.gather(name, value) if isinstance(value, Rows) else value
            for name, value in features.outputs.items()
        }
        found = []
        for piece, share in zip(pieces, shares, strict=True):
            if not share:
                continue
            known = {**given, **question, "keep": np.array(share, np.int64), "view": layout.order[piece]}
            feeds = {tensor.name: known[tensor.name] for tensor in spec.inputs}
            found.append(piece_of(run_finite(self._bundle, self.engine, feeds), piece.ravel()))
        if budget > layout.whole.size:
            found.append(self._newlines(features, budget - layout.whole.size))
        return found

    def _newlines(self, features: ImageFeatures, count: int) -> Piece:
        """Return the first ``count`` newlines of an image."""
        assert self._newline is not None  # a layout has newlines only if the model does
        lines = features.layout.newlines[:count]
        return Piece(self._newline.take(features.layout.order[lines]), lines, lines)
