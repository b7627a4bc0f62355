"""Pipeline: answer a prompt about images. Chat: the same over several turns that share one kv cache.

::

    pipe = Pipeline.load("bundles/llava-1.5-7b.sppruner.int4")
    answer = pipe.generate("street.jpg", "What is left of the bus?", keep=128)
    for piece in pipe.stream("street.jpg", "What is left of the bus?"):
        print(piece, end="", flush=True)
    chat = pipe.chat()
    chat.ask("What is this?", image="street.jpg")
    chat.ask("And what is left of it?")              # the image is already in the cache
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import datetime
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer, Stream, Timings
from foveate.runtime.answering import answer, prune_images
from foveate.runtime.bundle.compiled import choose, load_engines
from foveate.runtime.bundle.loading import load as load_bundle
from foveate.runtime.clock import Clock
from foveate.runtime.conversation import Chat
from foveate.runtime.images.image_source import ImageSource
from foveate.runtime.llm.budget import Keep
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.generation import Options
from foveate.runtime.model import LoadedModel
from foveate.runtime.request import Images, Request, check, image_list, open_images
from foveate.runtime.text.turns import Prompt, user_turn
from foveate.runtime.video.video_file import Video, VideoSampling, load_video
from foveate.runtime.vision.features import ImageFeatures

__all__ = ["Answer", "Chat", "Options", "Pipeline", "Stream", "Timings"]


class Pipeline(LoadedModel):
    """A bundle with loaded engines that answers prompts. Not safe for concurrent use."""

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

        ``engine`` is the key of a folder in ``engines/`` or its beginning, for example "onnxruntime".
        ``threads`` applies to engines on the CPU; None uses every core. ``progress`` gets a line for each
        large file that is hashed. Raises UserError.
        """
        if threads is not None and threads < 1:
            raise UserError(
                f"wrong threads | got {threads}, expected 1 or more | leave it out for all", code=2
            )
        say = (lambda name: progress(f"checking {name}")) if progress else None
        bundle = load_bundle(path, progress=say)
        made = choose(bundle, engine, say)
        return cls(bundle, load_engines(bundle, made, {"threads": threads}))

    def see(self, image: ImageSource | Video) -> ImageFeatures:
        """Run the vision encoder on an image. Return its output.

        The result may take the place of the image in every prompt to this pipeline, with any question and
        budget. The image is not encoded again then.
        """
        return self.vision.see(self.vision.open(image), Clock())

    def video(self, path: str | os.PathLike[str]) -> Video:
        """Return frames of a video file, to be passed as an image.

        Raises UserError if the model takes no videos.
        """
        if self.vision.processor.video is None:
            raise UserError(
                f"{self.manifest.family} takes no videos | got {path}, expected images "
                "| show frames of it with --image",
                code=2,
            )
        return load_video(path, VideoSampling.from_json(self.manifest.image))

    def chat(self, system: str | None = None, *, started: datetime | None = None) -> Chat:
        """Return a new conversation.

        ``system`` is its first message, if the model's chat template knows such a turn. ``started`` is the
        date for chat templates that show one; None stands for now.
        """
        return Chat(self, system, started)

    def generate(
        self,
        images: Images,
        prompt: Prompt,
        *,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,  # fields of Options
    ) -> Answer:
        """Return the answer to ``prompt`` about ``images``.

        ``images`` is one image, several, or None. An image is a path, a data URL, bytes, an open file, a PIL
        image, a uint8 array (``foveate.runtime.images.image_source``), or the result of ``see`` or ``video``.
        If the prompt is a text, the images stand before it. If it is a sequence of texts and ``IMAGE``
        (``foveate.runtime.text.turns``), each image takes the place of one ``IMAGE``.

        ``keep`` is the budget of visual tokens per image: a count, a percentage ("22.2%"), or None for the
        bundle's default. ``options`` says how the answer is generated. Its fields may also be given by name,
        such as ``max_new_tokens=64`` (``asked``). The default is greedy decoding with the checkpoint's
        penalties, lengths and stop strings.

        Raises UserError before anything runs if an argument is out of range or the prompt does not fit into
        the model.
        """
        return self.stream(images, prompt, keep=keep, options=options, **asked).finish()

    def stream(
        self,
        images: Images,
        prompt: Prompt,
        *,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,  # fields of Options
    ) -> Stream:
        """Return the answer to ``prompt`` as a stream of pieces of text. Arguments as for ``generate``."""
        sources = image_list(images)
        turns = [user_turn(prompt, len(sources))]
        wanted = replace(options or Options(), **asked)
        opened = open_images(self, sources, keep)
        decoder = self.decoder()
        return Stream(self._answer(decoder, check(self, decoder, turns, opened, wanted, datetime.now())))

    def _answer(self, decoder: Decoder, request: Request) -> Generator[str, None, Answer]:
        clock = Clock()
        images = prune_images(self, request, clock)
        return (yield from answer(self, decoder, request, images, clock))
