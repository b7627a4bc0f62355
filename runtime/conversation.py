"""Chat: turns go in, answers come out, and one cache carries what they share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer, Clock, Stream, Timings
from foveate.runtime.budget import Keep
from foveate.runtime.decode import Picture, prompt_items
from foveate.runtime.film import Video
from foveate.runtime.image_source import ImageSource, read_once
from foveate.runtime.layout import Layout
from foveate.runtime.prompt import Segment
from foveate.runtime.sampling import Sampler, Sampling
from foveate.runtime.turns import Prompt, Turn, user_turn
from foveate.runtime.vision import Seen

if TYPE_CHECKING:
    from foveate.runtime.pipeline import Pipeline

__all__ = ["MAX_NEW_TOKENS", "Chat", "Images"]

MAX_NEW_TOKENS = 256

OneImage = ImageSource | Video | Seen
Images = OneImage | Sequence[OneImage] | None


@dataclass(frozen=True)
class _Shown:
    """A picture in a conversation: what the encoder made of it, its budget, and what is left of it."""

    seen: Seen
    keep: int
    picture: Picture


@dataclass(frozen=True)
class _Request:
    """A turn that was found in order. ``budgets`` are those of its pictures, ``old`` those of the pictures shown before."""

    turns: list[Turn]
    segments: list[Segment]
    images: list[OneImage]
    budgets: list[int]
    old: list[int]
    reprune: bool
    most: int
    sampling: Sampling
    keep_special: bool


class Chat:
    """A conversation with one cache. Each picture is pruned once, with the question of its own turn in view.

    A turn whose answer was broken off (an error, Ctrl-C, ``Stream.close``) is not part of the conversation; the cache
    keeps what it has. One answer at a time: use up a stream, or close it, before the next question.
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
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        keep_special: bool = False,
    ) -> Answer:
        """The answer to the next turn, ``text`` with any new pictures. Arguments as for ``Pipeline.generate``.

        ``reprune`` prunes every picture of the conversation again with this question in view (and with ``keep``, where
        given), which starts the cache over.
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        stream = self.stream(
            text,
            image,
            reprune=reprune,
            keep=keep,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            keep_special=keep_special,
        )
        return stream.finish()

    def stream(
        self,
        text: Prompt,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        keep_special: bool = False,
    ) -> Stream:
        """``ask``, piece by piece. Raises UserError here, before anything runs, when an argument is out of range or the
        model has no room for the prompt."""
        images = _listed(image)
        turns = [*self.turns, user_turn(text, len(images))]
        if max_new_tokens < 1:
            raise UserError(
                f"wrong max-new-tokens | got {max_new_tokens}, expected 1 or more "
                f"| leave it out for {MAX_NEW_TOKENS}",
                code=2,
            )
        vision = self._pipe.vision
        layouts = [vision.layout(each) for each in images]
        budgets = [vision.budget(keep, plan) for plan in layouts]
        if not images:
            vision.budget(keep)  # refused all the same
        segments = self._pipe.tokenizer.encode_turns(turns, now=self._started)
        again = reprune and keep is not None
        old = [vision.budget(keep, s.seen.layout) if again else s.keep for s in self._shown]
        layouts = [shown.seen.layout for shown in self._shown] + layouts
        room = self._room(segments, list(zip(layouts, old + budgets, strict=True)), reprune)
        most = min(max_new_tokens, room)
        sampling = sampling or Sampling()
        request = _Request(turns, segments, images, budgets, old, reprune, most, sampling, keep_special)
        return Stream(self._answer(request))

    def _room(
        self, segments: Sequence[Segment], pictures: Sequence[tuple[Layout, int]], reprune: bool
    ) -> int:
        """How many tokens the answer may have when none of the ``pictures`` leaves more than its budget."""
        decoder = self._decoder
        known = [] if reprune else [shown.picture for shown in self._shown]
        most = self._pipe.vision.most_rows
        blank = [
            Picture(None, np.zeros(most(keep, plan.total)), plan.total, layout=plan)
            for plan, keep in pictures[len(known) :]
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
        """Every picture of the conversation after pruning: the old ones as they are unless pruned again."""
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
        items = prompt_items(request.segments, [s.picture for s in shown])
        reused = decoder.reuse(items)
        sampler = Sampler(request.sampling)
        with clock.measure(
            "prefill"
        ):  # with the first token, since what an engine queued is waited for there
            token = sampler(decoder.prefill(items, request.most))
        prompt_rows = decoder.length
        text, tokens, first, finish = yield from self._decode(token, sampler, request, clock)
        # In a later turn special tokens would be ordinary text: the history is without them.
        words = _opened([], self._pipe.tokenizer.decode(tokens)) if request.keep_special else text
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
        pictures = [s.picture for s in shown]
        kept = [p.patches(-1) if p.left else p.kept for p in pictures]
        stages = [self._survivors(picture) for picture in pictures]
        owners, layouts = [p.owner for p in pictures], [s.seen.layout for s in shown]
        return Answer(text, tokens, kept, finish, timings, stages, owners, layouts)

    def _survivors(self, picture: Picture) -> dict[str, np.ndarray]:
        """The patches that are left of a picture behind each stage that prunes."""
        before = {"pruner": picture.kept} if self._pipe.vision.prunes else {}
        return before | {f"pruner.{cut}": picture.patches(cut) for cut in range(len(picture.left))}

    def _decode(
        self, token: int, sampler: Sampler, request: _Request, clock: Clock
    ) -> Generator[str, None, tuple[str, list[int], float, str]]:
        """Token after token from the first one: text, tokens, seconds to the first one, finish."""
        tokenizer = self._pipe.tokenizer
        text, stop = tokenizer.detokenizer(keep_special=request.keep_special), tokenizer.stop_ids
        first, tokens, said = clock.elapsed, [], []
        while token not in stop:
            tokens.append(token)
            if piece := _opened(said, text.step(token)):
                said.append(piece)
                yield piece
            if len(tokens) == request.most:
                break
            with clock.measure("decode"):
                token = sampler(self._decoder.step(token))
        if piece := _opened(said, text.finish()):
            said.append(piece)
            yield piece
        return "".join(said), tokens, first, "stop" if token in stop else "length"


def _listed(images: Images) -> list[OneImage]:
    if images is None:
        return []
    listed = images if isinstance(images, (list, tuple)) else [images]
    return [each if isinstance(each, (Seen, Video)) else read_once(each) for each in listed]


def _opened(said: list[str], piece: str) -> str:
    """The blank between "ASSISTANT:" and the answer belongs to the chat format, which puts it back in later turns."""
    return piece if said else piece.lstrip()
