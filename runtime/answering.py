"""Answering a request: prune its images, prefill the prompt, decode. ``Pipeline`` and ``Chat`` share it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.runtime.answer import Answer, Timings
from foveate.runtime.clock import Clock
from foveate.runtime.finite import refuse
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.logits import Logits, NotFiniteError
from foveate.runtime.llm.penalties import Penalties
from foveate.runtime.llm.prompt_items import prompt_items
from foveate.runtime.llm.sampling import Sampler
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.model import LoadedModel
from foveate.runtime.request import PromptImage, Request
from foveate.runtime.text.stops import AnswerText
from foveate.runtime.vision.features import ImageFeatures

__all__ = ["PrunedImage", "answer", "prune_images"]


@dataclass(frozen=True, eq=False)
class PrunedImage:
    """An image of a prompt: the vision encoder's output, the budget, and the tokens that enter the LLM."""

    features: ImageFeatures
    keep: int
    visual: VisualTokens

    def again(self, keep: int | None = None) -> PromptImage:
        """Return the image for a later prompt: as it is, or to be pruned again with the budget ``keep``."""
        if keep is None:
            return PromptImage(self.features, self.keep, self.visual)
        return PromptImage(self.features, keep)


def prune_images(model: LoadedModel, request: Request, clock: Clock) -> list[PrunedImage]:
    """Return the images of a request after vision encoder and pre-LLM pruner.

    An image that was pruned for an earlier question stays as it is.
    """
    vision, found = model.vision, []
    new = any(image.visual is None for image in request.images)
    question = vision.question(request.question, clock) if new else {}
    for image in request.images:
        features = image.image if isinstance(image.image, ImageFeatures) else vision.see(image.image, clock)
        visual = image.visual
        if visual is None:
            visual = vision.prune(features, question, image.keep, clock)
        found.append(PrunedImage(features, image.keep, visual))
    return found


def answer(
    model: LoadedModel, decoder: Decoder, request: Request, images: Sequence[PrunedImage], clock: Clock
) -> Generator[str, None, Answer]:
    """Yield the pieces of the answer's text, and return the answer.

    ``images`` are those of ``prune_images``. What the prompt shares with the last one stays in the
    ``decoder``'s cache. Raises UserError if the logits are NaN or infinite.
    """
    items = prompt_items(request.segments, [image.visual for image in images])
    reused = decoder.reuse(items)
    penalties = Penalties(request.generation, request.ids, model.tokenizer.stop_ids)
    sampler = Sampler(request.generation.sampling, penalties)
    # the first token belongs to "prefill": choosing it waits for the work that the engine has queued
    with clock.measure("prefill"):
        prefill = decoder.prefill(items, request.most)
        token = _choose(model, decoder, sampler, prefill.logits, [], images)
    prompt_rows, first_token = decoder.length, clock.elapsed
    text, tokens, stop = yield from _decode(model, decoder, request, sampler, token, clock)
    steps, seconds = decoder.length - prompt_rows, clock.seconds
    timings = Timings(
        **seconds,
        first_token=first_token,
        total=clock.elapsed,
        tokens_per_second=steps / seconds["decode"] if steps else 0.0,
        prompt_rows=prompt_rows,
        reused_rows=reused,
        cache_bytes_allocated=decoder.allocated,
        cache_bytes_used=decoder.used,
    )
    stages = [_stages(model, image.visual, left) for image, left in zip(images, prefill.left, strict=True)]
    return Answer(
        text=text,
        tokens=tokens,
        kept=[
            list(stage.values())[-1] if stage else image.visual.kept
            for image, stage in zip(images, stages, strict=True)
        ],
        finish="length" if stop is None else "stop",
        timings=timings,
        stages=stages,
        owners=[image.visual.owner for image in images],
        layouts=[image.features.layout for image in images],
        views=[image.features.view for image in images],
        stop=stop,
    )


def _stages(model: LoadedModel, visual: VisualTokens, left: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the visual tokens of an image that are left after each stage that prunes, by its name.

    ``left`` holds the rows that each in-LLM pruner left.
    """
    before = {"pruner": visual.kept} if model.vision.prunes else {}
    return before | {f"pruner.{cut}": visual.tokens_of(rows) for cut, rows in enumerate(left)}


def _decode(
    model: LoadedModel, decoder: Decoder, request: Request, sampler: Sampler, token: int, clock: Clock
) -> Generator[str, None, tuple[str, list[int], int | str | None]]:
    """Generate from the first ``token`` on. Return text, tokens, and what stopped it (``Answer.stop``)."""
    tokenizer = model.tokenizer
    pieces = tokenizer.detokenizer(keep_special=request.generation.keep_special)
    text, stop_ids = AnswerText(pieces, request.stops.texts), tokenizer.stop_ids | request.stops.ids
    tokens: list[int] = []
    while token not in stop_ids:
        tokens.append(token)
        if piece := text.step(token):
            yield piece
        if text.stop is not None or len(tokens) == request.most:
            break
        with clock.measure("decode"):
            token = _choose(model, decoder, sampler, decoder.step(token), tokens)
    if piece := text.finish():
        yield piece
    return text.text, tokens, token if token in stop_ids else text.stop


def _choose(
    model: LoadedModel,
    decoder: Decoder,
    sampler: Sampler,
    logits: Logits,
    answer: Sequence[int],
    images: Sequence[PrunedImage] = (),
) -> int:
    """Return the token that follows the tokens ``answer``.

    Raises UserError if the logits are NaN or infinite. It names the first stage with such numbers, also
    among the stages of the ``images`` in the prompt.
    """
    try:
        return sampler(logits, answer)
    except NotFiniteError as error:
        decoder.clear()  # the cache is spoilt as well
        for image in images:
            if fault := model.vision.fault(image.features, image.visual):
                raise fault from error
        after = f"{len(answer)} tokens of the answer" if answer else "the prompt"
        raise refuse(model.bundle, decoder.name, decoder.dtype, f"logits after {after}") from error
