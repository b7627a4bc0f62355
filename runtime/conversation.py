"""Chat: answer the turns of a conversation. One kv cache holds what the turns share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer, Clock, Stream, Timings
from foveate.runtime.finite import refuse
from foveate.runtime.images.image_source import ImageSource, read_once
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.llm.budget import Keep
from foveate.runtime.llm.decoder import VisualTokens, prompt_ids, prompt_items
from foveate.runtime.llm.generation import MAX_NEW_TOKENS, Generation, Options
from foveate.runtime.llm.logits import Logits, NotFiniteError
from foveate.runtime.llm.penalties import Penalties
from foveate.runtime.llm.sampling import Sampler
from foveate.runtime.text.chat_prompt import Segment
from foveate.runtime.text.stops import AnswerText, StopStrings, without_special
from foveate.runtime.text.turns import Prompt, Turn, user_turn
from foveate.runtime.video.video_file import Video
from foveate.runtime.vision.stages import Seen

if TYPE_CHECKING:
    from foveate.runtime.pipeline import Pipeline

__all__ = ["Chat", "Images"]

OneImage = ImageSource | Video | Seen
Images = OneImage | Sequence[OneImage] | None


@dataclass(frozen=True)
class _Shown:
    """An image of a conversation: the vision encoder's output, the budget, and the tokens that are left."""

    seen: Seen
    keep: int
    visual: VisualTokens


@dataclass(frozen=True)
class _Request:
    """A turn whose arguments were checked.

    ``ids`` int64 [P] are the token ids of the whole prompt (``llm.decoder.prompt_ids``). ``budgets`` are
    those of this turn's images, ``old`` those of the images of earlier turns. ``most`` is the largest number
    of tokens of the answer.
    """

    turns: list[Turn]
    segments: list[Segment]
    ids: np.ndarray
    images: list[OneImage]
    budgets: list[int]
    old: list[int]
    reprune: bool
    most: int
    generation: Generation
    stops: StopStrings


class Chat:
    """A conversation with one kv cache. Each image is pruned once, for the question of its own turn.

    A turn whose answer was broken off (by an error, Ctrl-C or ``Stream.close``) does not become part of the
    conversation; the cache keeps its rows. Only one answer can be generated at a time: read a stream to its
    end, or close it, before the next question.
    """

    def __init__(
        self, pipeline: Pipeline, system: str | None = None, started: datetime | None = None
    ) -> None:
        self._pipe = pipeline
        self._started = started or datetime.now()
        self._decoder = pipeline.decoder()
        self._shown: list[_Shown] = []
        self.turns: list[Turn] = [] if system is None else [Turn("system", system)]

    def ask(
        self,
        text: Prompt,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,
    ) -> Answer:
        """Return the answer to the next turn: ``text`` with any new images.

        Arguments as for ``Pipeline.generate``.

        ``reprune`` prunes every image of the conversation again for this question, with ``keep`` if it is
        given. The kv cache then starts over.
        """
        return self.stream(text, image, reprune=reprune, keep=keep, options=options, **asked).finish()

    def stream(
        self,
        text: Prompt,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,
    ) -> Stream:
        """Return the answer to the next turn as a stream of pieces of text. Arguments as for ``ask``.

        Raises UserError from this call, before anything runs, if an argument is out of range or the prompt
        does not fit into the model.
        """
        images = _listed(image)
        turns = [*self.turns, user_turn(text, len(images))]
        generation = replace(options or Options(), **asked).over(self._pipe.generation)
        stops = StopStrings.of(generation, self._pipe.tokenizer.special)
        vision = self._pipe.vision
        layouts = [vision.layout(each) for each in images]
        budgets = [vision.budget(keep, plan) for plan in layouts]
        if not images:
            vision.budget(keep)  # a wrong budget is refused without images as well
        segments = self._pipe.tokenizer.encode_turns(turns, now=self._started)
        again = reprune and keep is not None
        old = [vision.budget(keep, s.seen.layout) if again else s.keep for s in self._shown]
        layouts = [shown.seen.layout for shown in self._shown] + layouts
        room = self._room(segments, list(zip(layouts, old + budgets, strict=True)), reprune)
        ids = prompt_ids(segments, layouts, self._pipe.tokenizer.settings)
        most = min(_length(generation, len(ids)), room)
        return Stream(
            self._answer(
                _Request(turns, segments, ids, images, budgets, old, reprune, most, generation, stops)
            )
        )

    def _room(self, segments: Sequence[Segment], budgets: Sequence[tuple[Layout, int]], reprune: bool) -> int:
        """Return how many tokens the answer may have if every image leaves as many rows as it may."""
        decoder = self._decoder
        known = [] if reprune else [shown.visual for shown in self._shown]
        most = self._pipe.vision.most_rows
        blank = [
            VisualTokens(None, np.zeros(most(keep, plan.total)), plan.total, layout=plan)
            for plan, keep in budgets[len(known) :]
        ]
        items = prompt_items(segments, [*known, *blank])
        rows, positions = sum(map(decoder.rows, items)), sum(map(decoder.span, items))
        if (room := decoder.room(rows, positions)) < 1:
            longest, visual = max(rows, positions), sum(len(each.kept) for each in (*known, *blank))
            raise UserError(
                f"the prompt is too long | got {longest} tokens ({visual} of them visual), "
                f"expected at most {longest + room - 1} | shorten it, or lower keep"
            )
        return room

    def _look(self, request: _Request, clock: Clock) -> list[_Shown]:
        """Return every image of the conversation after pruning.

        Images of earlier turns change only by a repruning.
        """
        vision, shown = self._pipe.vision, list(self._shown)
        if not request.images and not (request.reprune and shown):
            return shown
        question = vision.question(request.turns[-1].text or "", clock)
        if request.reprune:
            shown = [
                _Shown(s.seen, keep, vision.prune(s.seen, question, keep, clock))
                for s, keep in zip(shown, request.old, strict=True)
            ]
        for image, keep in zip(request.images, request.budgets, strict=True):
            seen = image if isinstance(image, Seen) else vision.see(image, clock)
            shown.append(_Shown(seen, keep, vision.prune(seen, question, keep, clock)))
        return shown

    def _answer(self, request: _Request) -> Generator[str, None, Answer]:
        clock, decoder = Clock(), self._decoder
        shown = self._look(request, clock)
        items = prompt_items(request.segments, [s.visual for s in shown])
        reused = decoder.reuse(items)
        penalties = Penalties(request.generation, request.ids, self._pipe.tokenizer.stop_ids)
        sampler = Sampler(request.generation.sampling, penalties)
        # the first token belongs to "prefill": choosing it waits for the work that the engine has queued
        with clock.measure("prefill"):
            token = self._choose(sampler, decoder.prefill(items, request.most), [], shown)
        prompt_rows = decoder.length
        text, tokens, first, stop = yield from self._decode(token, sampler, request, clock)
        words = text
        if request.generation.keep_special:  # a later turn would read special tokens as ordinary text
            words = self._without_special(tokens, stop)
        self._shown, self.turns = shown, [*request.turns, Turn("assistant", words)]
        steps, seconds = decoder.length - prompt_rows, clock.seconds
        timings = Timings(
            **seconds,
            first_token=first,
            total=clock.elapsed,
            tokens_per_second=steps / seconds["decode"] if steps else 0.0,
            prompt_rows=prompt_rows,
            reused_rows=reused,
            cache_bytes_allocated=decoder.allocated,
            cache_bytes_used=decoder.used,
        )
        visuals = [s.visual for s in shown]
        kept = [p.patches(-1) if p.left else p.kept for p in visuals]
        stages = [self._survivors(visual) for visual in visuals]
        owners, layouts = [p.owner for p in visuals], [s.seen.layout for s in shown]
        finish = "length" if stop is None else "stop"
        views = [s.seen.view for s in shown]
        return Answer(text, tokens, kept, finish, timings, stages, owners, layouts, views, stop)

    def _without_special(self, tokens: Sequence[int], stop: int | str | None) -> str:
        """Return an answer's text without special tokens. A token id ``stop`` is not in ``tokens``."""
        tokenizer = self._pipe.tokenizer
        text = stop if isinstance(stop, str) else None
        return without_special(tokenizer.detokenizer(), tokens, text, tokenizer.special)

    def _survivors(self, visual: VisualTokens) -> dict[str, np.ndarray]:
        """Return the visual tokens of an image that are left after each stage that prunes."""
        before = {"pruner": visual.kept} if self._pipe.vision.prunes else {}
        return before | {f"pruner.{cut}": visual.patches(cut) for cut in range(len(visual.left))}

    def _decode(
        self, token: int, sampler: Sampler, request: _Request, clock: Clock
    ) -> Generator[str, None, tuple[str, list[int], float, int | str | None]]:
        """Generate from the first token on.

        Return text, tokens, seconds to the first token, and what stopped it.
        """
        tokenizer = self._pipe.tokenizer
        pieces = tokenizer.detokenizer(keep_special=request.generation.keep_special)
        text, stop_ids = AnswerText(pieces, request.stops.texts), tokenizer.stop_ids | request.stops.ids
        first, tokens = clock.elapsed, []
        while token not in stop_ids:
            tokens.append(token)
            if piece := text.step(token):
                yield piece
            if text.stop is not None or len(tokens) == request.most:
                break
            with clock.measure("decode"):
                token = self._choose(sampler, self._decoder.step(token), tokens)
        if piece := text.finish():
            yield piece
        return text.text, tokens, first, token if token in stop_ids else text.stop

    def _choose(
        self, sampler: Sampler, logits: Logits, answer: Sequence[int], shown: Sequence[_Shown] = ()
    ) -> int:
        """Return the token that follows ``answer``.

        Raises UserError if the logits are NaN or infinite. It names the first stage with such numbers, also
        among the stages of the images ``shown`` in the prompt.
        """
        try:
            return sampler(logits, answer)
        except NotFiniteError as error:
            decoder, self._decoder = self._decoder, self._pipe.decoder()  # the old cache is spoilt as well
            for image in shown:
                if fault := self._pipe.vision.fault(image.seen, image.visual):
                    raise fault from error
            after = f"{len(answer)} tokens of the answer" if answer else "the prompt"
            what = f"logits after {after}"
            raise refuse(self._pipe.bundle, decoder.name, decoder.dtype, what) from error


def _listed(images: Images) -> list[OneImage]:
    if images is None:
        return []
    listed = images if isinstance(images, (list, tuple)) else [images]
    return [each if isinstance(each, (Seen, Video)) else read_once(each) for each in listed]


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
