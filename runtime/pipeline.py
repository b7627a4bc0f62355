"""Pipeline: pictures and a prompt go in, an answer comes out. Chat: the same over several turns, with one cache.

::

    pipe = Pipeline.load("bundles/llava-1.5-7b.sppruner.int4")
    answer = pipe.generate("street.jpg", "What is left of the bus?", keep=128)
    for piece in pipe.stream("street.jpg", "What is left of the bus?"):
        print(piece, end="", flush=True)
    chat = pipe.chat()
    chat.ask("What is this?", image="street.jpg")
    chat.ask("And what is left of it?")              # the picture is in the cache already
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer, Clock, Stream, Timings
from foveate.runtime.bundle.compiled import choose, load_engines
from foveate.runtime.bundle.loading import Bundle, Manifest
from foveate.runtime.bundle.loading import load as load_bundle
from foveate.runtime.conversation import Chat, Images
from foveate.runtime.images.image_source import ImageSource, read_once
from foveate.runtime.llm.budget import Keep
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.generation import Generation, Options
from foveate.runtime.text.chat_prompt import ChatTokenizer
from foveate.runtime.text.turns import Prompt
from foveate.runtime.video.video_file import Video, load_video
from foveate.runtime.vision.stages import Seen, VisionStages

__all__ = ["Answer", "Chat", "Options", "Pipeline", "Stream", "Timings"]


class Pipeline:
    """A bundle at work. Not safe for concurrent use."""

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self.bundle = bundle
        self.generation = Generation.from_json(bundle.manifest.generation)
        self._table = bundle.embeddings()
        self.tokenizer = ChatTokenizer(
            bundle.file("tokenizer.json"), bundle.manifest.prompt, len(self._table)
        )
        self._engines = engines
        self.vision = VisionStages(bundle, engines, self.tokenizer, self._table)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        engine: str | None = None,
        *,
        threads: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Pipeline:
        """Open the bundle at ``path`` with a compiled engine that fits this machine.

        ``engine`` is a key in ``engines/`` or the beginning of one, e.g. "onnxruntime"; ``threads`` is for engines on the
        CPU, None for every core; ``progress`` gets a line for each large file that is hashed. Raises UserError.
        """
        if threads is not None and threads < 1:
            raise UserError(
                f"wrong threads | got {threads}, expected 1 or more | leave it out for all", code=2
            )
        say = (lambda name: progress(f"checking {name}")) if progress else None
        bundle = load_bundle(path, progress=say)
        plan = choose(bundle, engine, say)
        return cls(bundle, load_engines(bundle, plan, {"threads": threads}))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def decoder(self) -> Decoder:
        """A fresh cache for the language model."""
        return Decoder(self._engines, self._table, self.manifest)

    def see(self, image: ImageSource | Video) -> Seen:
        """The picture after the vision encoder. It stands for the picture in every prompt to this pipeline, whatever
        the question and the budget, and is not encoded again there."""
        return self.vision.see(image if isinstance(image, Video) else read_once(image), Clock())

    def video(self, path: str | os.PathLike[str]) -> Video:
        """Frames of a video file, to be given as a picture. Raises UserError where the model takes no videos."""
        if "video" not in self.manifest.image:
            raise UserError(
                f"{self.manifest.family} takes no videos | got {path}, expected pictures | show frames of it with --image",
                code=2,
            )
        return load_video(path, {**self.manifest.image, **self.manifest.image["video"]})

    def chat(self, system: str | None = None, *, started: datetime | None = None) -> Chat:
        """A conversation. ``system`` opens it, where the model's chat format knows such a turn. ``started`` is the
        date for chat formats that show one, None for this moment's."""
        return Chat(self, system, started)

    def generate(
        self,
        images: Images,
        prompt: Prompt,
        *,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,
    ) -> Answer:
        """The answer to ``prompt`` about ``images``: one picture (see ``runtime.image``, or ``see``, or ``video``), several,
        or None. They stand before a prompt that is a text; in a sequence of texts and ``IMAGE`` (``runtime.turns``)
        each stands in its place.

        ``keep`` is the budget of visual tokens per picture: a count, a percentage ("22.2%"), or None for the bundle's
        default. ``options``, or fields of it by name (``asked``), say how the answer is generated: greedily and with the
        checkpoint's penalties, lengths and stop strings unless they say otherwise. Raises UserError before anything runs
        when an argument is out of range or the model has no room for the prompt.
        """
        return self.stream(images, prompt, keep=keep, options=options, **asked).finish()

    def stream(
        self,
        images: Images,
        prompt: Prompt,
        *,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,
    ) -> Stream:
        """``generate``, piece by piece."""
        return self.chat().stream(prompt, images, keep=keep, options=options, **asked)
