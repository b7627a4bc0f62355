"""A bundle with loaded engines: the parts that answer a prompt. ``Pipeline`` and ``Chat`` share it."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.engines.engine import Engine
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.generation import Generation
from foveate.runtime.text.chat_prompt import ChatTokenizer
from foveate.runtime.vision.stages import VisionStages

__all__ = ["LoadedModel"]


class LoadedModel:
    """A bundle with loaded engines. Not safe for concurrent use.

    ``engines`` has one for each stage of the bundle, by name.
    """

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self.bundle = bundle
        self.generation = Generation.from_json(bundle.manifest.generation)
        self._table = bundle.embeddings()
        self.tokenizer = ChatTokenizer(
            bundle.file("tokenizer.json"), bundle.manifest.prompt, len(self._table)
        )
        self._engines = engines
        self.vision = VisionStages(bundle, engines, self.tokenizer, self._table)

    @property
    def manifest(self) -> Manifest:
        """Return the contents of ``bundle.json``."""
        return self.bundle.manifest

    def decoder(self) -> Decoder:
        """Return a language model with an empty kv cache."""
        return Decoder(self._engines, self._table, self.manifest)
