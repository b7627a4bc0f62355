"""Stages before the language model: an image and a question go in, and the kept visual tokens come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from foveate.engines.buffer import Buffer, Feed
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.row_gather import Rows
from foveate.runtime.bundle.arrays import array
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.clock import Clock
from foveate.runtime.finite import first_wrong, refuse, run_finite
from foveate.runtime.images.image_file import ImageReader
from foveate.runtime.images.image_source import ImageSource
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import Layout, single
from foveate.runtime.llm.budget import Keep, resolve_keep, stage_keep
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.text.chat_prompt import ChatTokenizer
from foveate.runtime.video.video_file import Video
from foveate.runtime.vision.features import ImageFeatures, ImageInput
from foveate.runtime.vision.pieces import join, merged_pieces
from foveate.runtime.vision.pre_llm_pruner import PreLLMPruner
from foveate.runtime.vision.question import QuestionReader

__all__ = ["VisionStages"]


class VisionStages:
    """The engine ``vision_encoder``, and ``text_encoder`` and ``pruner`` if the bundle has them.

    An image passes through ``open``, ``see`` and ``prune`` in this order.
    """

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, Engine], tokenizer: ChatTokenizer, table: np.ndarray
    ) -> None:
        manifest, self._bundle = bundle.manifest, bundle
        self.processor = image_processor(manifest.image)
        self._grid, self._method = manifest.grid, manifest.method
        self._total, self._points = manifest.num_visual_tokens, manifest.method.budgets.get("pruner", ())
        self._encoder = engines["vision_encoder"]
        newline = bundle.file("image_newline.npy")
        self._newline = Rows(array(newline)[None, None]) if newline.is_file() else None
        self._pruner: PreLLMPruner | None = None
        self._reader: QuestionReader | None = None
        if (pruner := engines.get("pruner")) is not None:
            self._pruner = PreLLMPruner(bundle, pruner, self._newline)
            self._reader = QuestionReader(bundle, pruner, engines.get("text_encoder"), tokenizer, table)

    @property
    def merges(self) -> bool:
        """Return whether the vision encoder's own layers merge tokens (an encoder merger)."""
        return self._method.fixed_keep is not None

    @property
    def prunes(self) -> bool:
        """Return whether the budget can be smaller than an image's number of visual tokens."""
        return self.merges or self._pruner is not None

    @property
    def varies(self) -> bool:
        """Return whether the number of visual tokens depends on the image."""
        return self.processor.varies

    def open(self, image: ImageSource | Video) -> ImageInput:
        """Return an image with the layout of its visual tokens.

        The file is opened here only if the layout depends on the image. Raises UserError if the image cannot
        be read then, or if it is a video and the model takes none.
        """
        if isinstance(image, Video):
            video = self.processor.video
            if video is None:
                raise UserError(
                    "this model takes no videos | expected images | give frames of it with --image", code=2
                )
            return ImageInput(image, video.token_layout(image.size, len(image.frames), image.interval))
        reader = ImageReader(image)
        if not self.varies:
            return ImageInput(reader, single(self._grid))
        return ImageInput(reader, self.processor.token_layout(reader.size, self._grid))

    def budget(self, keep: Keep, layout: Layout | None = None) -> int:
        """Return the budget that ``keep`` gives an image with ``layout``.

        None: the largest image there is.

        Raises UserError.
        """
        total, tiles = (layout.total, layout.tiles) if layout else (self._total, 1)
        method, fixed = self._method, self._method.fixed_keep
        if fixed is not None:
            method = replace(method, fixed_keep=fixed * tiles)
        largest = None if self._pruner is None or self.varies else self._pruner.most_keep
        return resolve_keep(keep, total, method, largest)

    def most_rows(self, keep: int, total: int) -> int:
        """Return the largest number of rows of an image that enter the language model.

        ``total`` is the image's number of visual tokens, ``keep`` its budget.
        """
        if self._pruner is None:
            return min(keep, total) if self.merges else total
        return stage_keep(self._points, keep, total)

    def see(self, image: ImageInput, clock: Clock) -> ImageFeatures:
        """Run the vision encoder on an image, or on each step of a video."""
        source, layout = image.source, image.layout
        if isinstance(source, Video):
            assert self.processor.video is not None  # ``open`` refuses videos otherwise
            steps = self.processor.video.preprocess(source.frames)
            found = []
            for _ in range(layout.steps):
                with clock.measure("preprocess"):
                    pixels = next(steps)
                found.append(self._encode(pixels, layout, clock))
            outputs = {name: Rows.join([Rows(each[name]) for each in found]) for name in found[0]}
            view = self.processor.view(source.size, layout)
            return ImageFeatures(outputs if len(found) > 1 else found[0], layout, view)
        with clock.measure("preprocess"):
            pixels = self.processor.preprocess(source.load())
        view = self.processor.view(source.size, layout)
        return ImageFeatures(self._encode(pixels, layout, clock), layout, view)

    def _encode(self, pixels: np.ndarray, layout: Layout, clock: Clock) -> dict[str, Buffer]:
        with clock.measure("vision"):
            dtype = self._encoder.spec.input("pixel_values").dtype
            feeds = {"pixel_values": pixels.astype(dtype, copy=False), **layout.feeds}
            return run_finite(self._bundle, self._encoder, feeds)

    def question(self, text: str, clock: Clock) -> dict[str, Feed]:
        """Return what the pruner reads of the question: ``text_embeds``, ``clip_text``, both or neither."""
        if self._reader is None:
            return {}
        with clock.measure("prune"):
            return self._reader.read(text)

    def prune(
        self, features: ImageFeatures, question: Mapping[str, Feed], keep: int, clock: Clock
    ) -> VisualTokens:
        """Return the image with its kept tokens, or with all if there is no pre-LLM pruner."""
        layout = features.layout
        with clock.measure("prune"):
            if self.merges:
                outputs = features.outputs.items()  # they are Rows for videos, which no encoder merger has
                buffers = {name: value for name, value in outputs if not isinstance(value, Rows)}
                return join(merged_pieces(buffers, layout), layout, keep)
            if self._pruner is None:
                return VisualTokens(self._all_rows(features), np.arange(layout.total), layout, keep)
            budget = self.most_rows(keep, layout.total)
            return join(self._pruner.prune(features, question, budget), layout, keep)

    def _all_rows(self, features: ImageFeatures) -> Rows:
        """Return all visual tokens [T,D] of an image: rows of the vision encoder's output, and newlines."""
        projected = features.outputs["projected"]
        rows = projected if isinstance(projected, Rows) else Rows(projected)
        # -1 in ``order`` stands for the newline, which is the last row
        return (rows if self._newline is None else Rows.join([rows, self._newline])).take(
            features.layout.order
        )

    def fault(self, features: ImageFeatures, visual: VisualTokens) -> UserError | None:
        """Return the error for an image whose features hold NaN or infinity, on host or device.

        None if all are finite.
        """
        if wrong := first_wrong(features.outputs):
            return refuse(self._bundle, "vision_encoder", _dtype(self._encoder), wrong)
        if self._pruner is not None and visual.tokens is not None and first_wrong({"tokens": visual.tokens}):
            return refuse(self._bundle, "pruner", _dtype(self._pruner.engine), "tokens")
        return None


def _dtype(engine: Engine) -> str:
    return engine.spec.outputs[0].dtype
