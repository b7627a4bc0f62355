"""The stages before the language model: a picture and a question go in, the surviving visual tokens come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines.base import Engine, Feed
from foveate.engines.spec import GraphSpec, Symbol
from foveate.runtime.answer import Clock
from foveate.runtime.budget import stage_keep
from foveate.runtime.bundle import Bundle
from foveate.runtime.decode import Picture
from foveate.runtime.image import ImageSource, preprocess
from foveate.runtime.prompt import ChatTokenizer, clip_segments, load_tokenizer

__all__ = ["Seen", "VisionStages"]


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture after the vision encoder: ``projected`` and the taps, where the engine left them."""

    outputs: dict[str, Feed]


class VisionStages:
    """The engines ``vision_encoder``, and ``text_encoder`` and ``pruner`` where the bundle has them."""

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, Engine], tokenizer: ChatTokenizer, table: np.ndarray
    ) -> None:
        self._image = bundle.manifest.image
        self._total = bundle.manifest.num_visual_tokens
        self._points = bundle.manifest.budgets.get("pruner", ())
        self._encoder = engines["vision_encoder"]
        self._pruner = engines.get("pruner")
        self._merges = bundle.manifest.method.get("fixed_keep") is not None  # in the encoder's own layers
        self._text = engines.get("text_encoder")
        self._tokenizer, self._table = tokenizer, table
        self._clip = load_tokenizer(bundle.file("clip_tokenizer.json")) if self._text else None

    @property
    def prunes(self) -> bool:
        """Whether fewer tokens than a picture has may enter the language model."""
        return self._merges or self._pruner is not None

    @property
    def largest_keep(self) -> int | None:
        """The largest ``keep`` that the engine takes; None without a pruner."""
        return self._pruner.spec.input("keep").value.max if self._pruner else None

    def most_rows(self, keep: int) -> int:
        """How many rows of a picture enter the language model at the budget ``keep``, at most."""
        if self._pruner is None:
            return keep if self._merges else self._total
        return stage_keep(self._points, keep, self._total)

    def see(self, image: ImageSource, clock: Clock) -> Seen:
        with clock.measure("preprocess"):
            pixels = preprocess(image, self._image)
        with clock.measure("vision"):
            spec = self._encoder.spec.input("pixel_values")
            return Seen(dict(self._encoder.run({"pixel_values": pixels.astype(spec.dtype, copy=False)})))

    def question(self, text: str, clock: Clock) -> dict[str, Feed]:
        """What the pruner reads of the user's words: those of ``text_embeds`` and ``clip_text`` that it asks for."""
        if self._pruner is None:
            return {}
        wanted = {tensor.name for tensor in self._pruner.spec.inputs}
        with clock.measure("prune"):
            feeds: dict[str, Feed] = {}
            if "text_embeds" in wanted:
                feeds["text_embeds"] = self._text_embeds(text)
            if "clip_text" in wanted:
                feeds["clip_text"] = self._clip_text(text)
            return feeds

    def prune(self, seen: Seen, question: Mapping[str, Feed], keep: int, clock: Clock) -> Picture:
        """The survivors; without a pruner before the language model what the encoder gives."""
        with clock.measure("prune"):
            outputs = seen.outputs
            if self._pruner is not None:
                feeds = {**outputs, **question, "keep": np.array(self.most_rows(keep), np.int64)}
                outputs = self._pruner.run(
                    {tensor.name: feeds[tensor.name] for tensor in self._pruner.spec.inputs}
                )
            elif not self._merges:
                return Picture(outputs["projected"].numpy()[0], np.arange(self._total), self._total, keep)
            count = int(outputs["count"].numpy()[0])
            tokens, kept = (outputs[name].numpy()[0, :count].copy() for name in ("tokens", "kept"))
            owner = outputs["owner"].numpy()[0].copy() if "owner" in outputs else None
            return Picture(tokens, kept, self._total, keep, owner)

    def _text_embeds(self, text: str) -> np.ndarray:
        """[1, W, D]: the rows of the words' tokens, at most as many as the graph takes; without any, one zero row."""
        spec = self._pruner.spec.input("text_embeds")
        ids = self._tokenizer.encode_text(text)[: _limit(self._pruner.spec, "text_embeds")]
        rows = self._table[ids] if len(ids) else np.zeros((1, self._table.shape[1]))
        return rows.astype(spec.dtype)[None]

    def _clip_text(self, text: str) -> Feed:
        """[1, S, J]: CLIP's view of the text, a row per segment; without any, one zero row."""
        spec = self._text.spec.input("input_ids")
        segments = clip_segments(text, self._clip, spec.shape[1])[
            : _limit(self._text.spec, "input_ids", axis=0)
        ]
        if not len(segments):
            target = self._pruner.spec.input("clip_text")
            return np.zeros((1, 1, target.shape[2]), target.dtype)
        return self._text.run({"input_ids": segments})["clip_text"]


def _limit(spec: GraphSpec, name: str, axis: int = 1) -> int:
    dim = spec.input(name).shape[axis]
    return dim.max if isinstance(dim, Symbol) else dim
