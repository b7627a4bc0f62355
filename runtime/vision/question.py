"""Inputs of the pre-LLM pruner that come from the user's question."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from foveate.engines.buffer import Feed
from foveate.engines.engine import Engine
from foveate.engines.spec import GraphSpec, Symbol
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.finite import run_finite
from foveate.runtime.text.chat_prompt import ChatTokenizer, clip_segments, load_tokenizer

__all__ = ["QuestionReader"]


class QuestionReader:
    """Makes those inputs of the pruner that depend on the question.

    ``text_encoder`` is CLIP's, in bundles whose pruner reads its features. ``table`` is the token embedding
    [V,D].
    """

    def __init__(
        self,
        bundle: Bundle,
        pruner: Engine,
        text_encoder: Engine | None,
        tokenizer: ChatTokenizer,
        table: np.ndarray,
    ) -> None:
        self._bundle, self._pruner, self._table = bundle, pruner.spec, table
        self._wanted = {tensor.name for tensor in pruner.spec.inputs}
        self._tokenizer = tokenizer
        self._clip = None if text_encoder is None else _Clip(bundle, text_encoder)

    def read(self, text: str) -> dict[str, Feed]:
        """Return the inputs ``text_embeds``, ``clip_text``, both or neither."""
        feeds: dict[str, Feed] = {}
        if "text_embeds" in self._wanted:
            feeds["text_embeds"] = self._text_embeds(text)
        if "clip_text" in self._wanted:
            feeds["clip_text"] = self._clip_text(text)
        return feeds

    def _text_embeds(self, text: str) -> np.ndarray:
        """Return [1, W, D]: the embeddings of the words' tokens, at most as many as the graph takes.

        Returns one zero row for a text without tokens.
        """
        dtype = self._pruner.input("text_embeds").dtype
        ids = self._tokenizer.encode_text(text)[: _limit(self._pruner, "text_embeds", axis=1)]
        rows = self._table[ids] if len(ids) else np.zeros((1, self._table.shape[1]))
        return rows.astype(dtype)[None]

    def _clip_text(self, text: str) -> Feed:
        """Return CLIP's features of the text, [1, S, J], one row per segment.

        A text without segments gives one zero row.
        """
        assert self._clip is not None  # a bundle whose pruner reads them has a text encoder
        found = self._clip.features(text)
        if found is None:
            target = self._pruner.input("clip_text")
            return np.zeros((1, 1, _limit(self._pruner, "clip_text", axis=2)), np.dtype(target.dtype))
        return found


class _Clip:
    """CLIP's text encoder and its tokenizer."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle, self._engine = bundle, engine
        self._tokenizer: Tokenizer = load_tokenizer(bundle.file("clip_tokenizer.json"))
        self._segments, self._context = (_limit(engine.spec, "input_ids", axis) for axis in (0, 1))

    def features(self, text: str) -> Feed | None:
        """Return CLIP's features of the text, [1, S, J], or None if it has no segments."""
        segments = clip_segments(text, self._tokenizer, self._context)[: self._segments]
        if not len(segments):
            return None
        return run_finite(self._bundle, self._engine, {"input_ids": segments})["clip_text"]


def _limit(spec: GraphSpec, name: str, axis: int) -> int:
    dim = spec.input(name).shape[axis]
    return dim.max if isinstance(dim, Symbol) else dim
