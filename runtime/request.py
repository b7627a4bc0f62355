"""Requests: the arguments of a question are checked, and its images opened, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.images.image_source import ImageSource, read_once
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.llm.budget import Keep
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.generation import MAX_NEW_TOKENS, Generation, Options
from foveate.runtime.llm.prompt_items import prompt_ids, prompt_items
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.model import LoadedModel
from foveate.runtime.text.chat_prompt import Segment
from foveate.runtime.text.stops import StopStrings
from foveate.runtime.text.turns import Turn
from foveate.runtime.video.video_file import Video
from foveate.runtime.vision.features import ImageFeatures, ImageInput

__all__ = ["Images", "PromptImage", "Request", "check", "image_list", "open_images"]

OneImage = ImageSource | Video | ImageFeatures
Images = OneImage | Sequence[OneImage] | None


@dataclass(frozen=True, eq=False)
class PromptImage:
    """An image of a prompt, with its budget.

    ``visual`` holds its tokens if it was pruned before, else None.
    """

    image: ImageInput | ImageFeatures
    keep: int
    visual: VisualTokens | None = None

    @property
    def layout(self) -> Layout:
        """Return the layout of the image's visual tokens."""
        return self.image.layout


@dataclass(frozen=True, eq=False)
class Request:
    """A question whose arguments were checked.

    ``segments`` and ``images`` make up the prompt. ``ids`` int64 [P] are the token ids of the whole prompt
    (``llm.prompt_items.prompt_ids``). ``question`` is what the pruner reads. ``most`` is the largest number
    of tokens of the answer.
    """

    segments: list[Segment]
    images: list[PromptImage]
    ids: np.ndarray
    question: str
    most: int
    generation: Generation
    stops: StopStrings


def image_list(images: Images) -> list[OneImage]:
    """Return the images one by one, each in a form that can be read repeatedly. Raises UserError."""
    if images is None:
        return []
    # ``read_once`` refuses sequences of other types
    listed: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
    return [each if isinstance(each, (ImageFeatures, Video)) else read_once(each) for each in listed]


def open_images(model: LoadedModel, images: Sequence[OneImage], keep: Keep) -> list[PromptImage]:
    """Lay out the new ``images`` of a prompt and turn ``keep`` into a budget for each. Raises UserError."""
    vision = model.vision
    opened = [each if isinstance(each, ImageFeatures) else vision.open(each) for each in images]
    if not opened:
        vision.budget(keep)  # a wrong budget is refused without images as well
    return [PromptImage(each, vision.budget(keep, each.layout)) for each in opened]


def check(
    model: LoadedModel,
    decoder: Decoder,
    turns: Sequence[Turn],
    images: list[PromptImage],
    options: Options,
    now: datetime,
) -> Request:
    """Return the request for an answer to the last of ``turns``.

    ``images`` are those of all turns. ``now`` is the date for chat templates that show one. Raises UserError
    if an option is out of range, or if the prompt does not fit into the model.
    """
    tokenizer = model.tokenizer
    generation = options.over(model.generation)
    stops = StopStrings.of(generation.stop_strings, tokenizer.special, keep_special=generation.keep_special)
    segments = tokenizer.encode_turns(turns, now=now)
    room = _room(model, decoder, segments, images)
    ids = prompt_ids(segments, [image.layout for image in images], tokenizer.settings)
    most = min(_length(generation, len(ids)), room)
    return Request(segments, images, ids, turns[-1].text or "", most, generation, stops)


def _room(
    model: LoadedModel, decoder: Decoder, segments: Sequence[Segment], images: Sequence[PromptImage]
) -> int:
    """Return how many tokens the answer may have if every image leaves as many rows as it may."""
    visuals = [image.visual if image.visual is not None else _largest(model, image) for image in images]
    rows, positions = decoder.extent(prompt_items(segments, visuals))
    if (room := decoder.room(rows, positions)) < 1:
        longest, visual = max(rows, positions), sum(map(len, visuals))
        raise UserError(
            f"the prompt is too long | got {longest} tokens ({visual} of them visual), "
            f"expected at most {longest + room - 1} "
            "| shorten it, lower keep, or compile with a larger --max-context if the model takes more"
        )
    return room


def _largest(model: LoadedModel, image: PromptImage) -> VisualTokens:
    """Return the image with as many rows as it may have after the pre-LLM pruner, without their content."""
    rows = model.vision.most_rows(image.keep, image.layout.total)
    return VisualTokens(None, np.zeros(rows, np.int64), image.layout)


def _length(generation: Generation, prompt: int) -> int:
    """Return how many tokens the answer to a prompt of ``prompt`` token ids may have.

    Raises UserError if the checkpoint's ``max_length`` leaves none.
    """
    most = generation.max_new_tokens or MAX_NEW_TOKENS
    if generation.max_length is None:
        return most
    if prompt >= generation.max_length:
        raise UserError(
            f"the prompt is too long | got {prompt} tokens, "
            f"the checkpoint's max_length is {generation.max_length} with the answer "
            "| shorten it, or say how long the answer may be with --max-new-tokens"
        )
    return min(most, generation.max_length - prompt)
