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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines.base import Engine
from foveate.engines.errors import UserError
from foveate.runtime.budget import Keep, resolve_keep
from foveate.runtime.bundle import Bundle, Manifest
from foveate.runtime.bundle import load as load_bundle
from foveate.runtime.decode import Decoder, Item, Picture
from foveate.runtime.image import ImageSource
from foveate.runtime.plans import choose, load_engines
from foveate.runtime.prompt import ChatTokenizer, ImageSlot, Segment, Turn
from foveate.runtime.sampling import Sampler, Sampling
from foveate.runtime.vision import Clock, Seen, VisionStages

__all__ = ["MAX_NEW_TOKENS", "Answer", "Chat", "Images", "Pipeline", "Stream", "Timings"]

MAX_NEW_TOKENS = 256

Images = ImageSource | Sequence[ImageSource] | None


@dataclass(frozen=True)
class Timings:
    """Seconds, except where the name says otherwise. ``first_token`` counts from the call; ``tokens_per_second`` is of
    decoding alone and 0 when nothing was decoded after the first token. ``reused_rows`` of ``prompt_rows`` were cached."""

    preprocess: float
    vision: float
    prune: float
    prefill: float
    decode: float
    first_token: float
    total: float
    tokens_per_second: float
    prompt_rows: int
    reused_rows: int
    cache_bytes_allocated: int
    cache_bytes_used: int


@dataclass(frozen=True)
class Answer:
    """``tokens`` without the stop id. ``kept`` has an array [R] int64 per picture of the prompt: the indices of the
    patches that stayed, -1 for a merged row. ``finish`` is "stop" or "length"."""

    text: str
    tokens: list[int]
    kept: list[np.ndarray]
    finish: str
    timings: Timings


class Stream(Iterator[str]):
    """Pieces of text as they settle; ``answer`` is there once they are used up. Work starts at the first ``next``."""

    def __init__(self, work: Generator[str, None, Answer]) -> None:
        self._work = work
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._work)
        except StopIteration as end:
            self._answer = end.value or self._answer
            raise StopIteration from None

    def close(self) -> None:
        """End the answer here."""
        self._work.close()

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("the answer is not complete: use up the stream first")
        return self._answer

    def finish(self) -> Answer:
        """Run to the end; the whole answer."""
        for _ in self:
            pass
        return self.answer


class Pipeline:
    """A bundle at work. Not safe for concurrent use."""

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self.bundle = bundle
        self.tokenizer = ChatTokenizer(bundle.file("tokenizer.json"), bundle.manifest.prompt)
        self._table = bundle.embeddings()
        self._llm = engines["llm"]
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
        plan = choose(bundle, engine)
        return cls(bundle, load_engines(bundle, plan, {"threads": threads}))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def decoder(self) -> Decoder:
        """A fresh cache for the language model."""
        manifest = self.manifest
        limit = manifest.decoder["max_positions"]
        return Decoder(self._llm, self._table, manifest.position_mode, limit)

    def chat(self, system: str | None = None) -> Chat:
        """A conversation. ``system`` opens it, where the model's chat format knows such a turn."""
        return Chat(self, system)

    def generate(
        self,
        images: Images,
        prompt: str,
        *,
        keep: Keep = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Answer:
        """The answer to ``prompt`` about ``images``: one picture (see ``runtime.image``), several, or None.

        ``keep`` is the budget of visual tokens per picture: a count, a percentage ("22.2%"), or None for the bundle's
        default. ``temperature`` 0 is greedy. Raises UserError before anything runs when an argument is out of range or
        the model has no room for the prompt.
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        return self.stream(
            images, prompt, keep=keep, max_new_tokens=max_new_tokens, sampling=sampling
        ).finish()

    def stream(
        self,
        images: Images,
        prompt: str,
        *,
        keep: Keep = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
    ) -> Stream:
        """``generate``, piece by piece. ``sampling`` stands for the four arguments before it."""
        sampling = sampling or Sampling(temperature, top_p, top_k, seed)
        return self.chat().stream(prompt, images, keep=keep, max_new_tokens=max_new_tokens, sampling=sampling)


@dataclass(frozen=True)
class _Shown:
    """A picture in a conversation: what the encoder made of it, its budget, and what is left of it."""

    seen: Seen
    keep: int
    picture: Picture


class Chat:
    """A conversation with one cache. Each picture is pruned once, with the question of its own turn in view.

    A turn whose answer was broken off (an error, Ctrl-C, ``Stream.close``) is not part of the conversation; the cache
    keeps what it has.
    """

    def __init__(self, pipeline: Pipeline, system: str | None = None) -> None:
        self._pipe = pipeline
        self._decoder = pipeline.decoder()
        self._shown: list[_Shown] = []
        self.turns: list[Turn] = [] if system is None else [Turn("system", system)]

    def ask(
        self,
        text: str,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Answer:
        """The answer to the next turn, ``text`` with any new pictures. Arguments as for ``Pipeline.generate``.

        ``reprune`` prunes every picture of the conversation again with this question in view (and with ``keep``, where
        given), which starts the cache over.
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        stream = self.stream(
            text, image, reprune=reprune, keep=keep, max_new_tokens=max_new_tokens, sampling=sampling
        )
        return stream.finish()

    def stream(
        self,
        text: str,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
    ) -> Stream:
        """``ask``, piece by piece. Raises UserError here, before anything runs, when an argument is out of range or the
        model has no room for the prompt."""
        if not text.strip():
            raise UserError(
                "the prompt is empty | expected a question or an instruction | give some text", code=2
            )
        if max_new_tokens < 1:
            raise UserError(f"wrong max-new-tokens | got {max_new_tokens}, expected 1 or more", code=2)
        images = _listed(image)
        manifest = self._pipe.manifest
        budget = resolve_keep(
            keep, manifest.num_visual_tokens, manifest.method, self._pipe.vision.largest_keep
        )
        turns = [*self.turns, Turn("user", text, len(images))]
        segments = self._pipe.tokenizer.encode_turns(turns)
        old = [budget if reprune and keep is not None else shown.keep for shown in self._shown]
        room = self._room(segments, old + [budget] * len(images), reprune)
        work = self._work(turns, segments, images, old, budget, reprune)
        return Stream(self._answer(work, turns, min(max_new_tokens, room), sampling or Sampling()))

    def _room(self, segments: Sequence[Segment], budgets: Sequence[int], reprune: bool) -> int:
        """How many tokens the answer may have when no picture of ``budgets`` leaves more than its budget."""
        decoder, total = self._decoder, self._pipe.manifest.num_visual_tokens
        known = [] if reprune else [shown.picture for shown in self._shown]
        blank = [Picture(np.empty((0, 0)), np.zeros(budget), total) for budget in budgets[len(known) :]]
        items = _items(segments, [*known, *blank])
        rows, positions = sum(map(decoder.rows, items)), sum(map(decoder.span, items))
        if (room := decoder.room(rows, positions)) < 1:
            raise UserError(
                f"the prompt is too long | got {max(rows, positions)} tokens ({sum(budgets)} of them visual), "
                f"expected at most {max(rows, positions) + room - 1} | shorten it, or lower keep"
            )
        return room

    def _work(
        self,
        turns: list[Turn],
        segments: Sequence[Segment],
        images: Sequence[ImageSource],
        old: Sequence[int],
        budget: int,
        reprune: bool,
    ) -> Callable[[Clock], tuple[list[Item], list[_Shown]]]:
        """The stages before the language model, to be run when the stream is first read."""

        def run(clock: Clock) -> tuple[list[Item], list[_Shown]]:
            vision = self._pipe.vision
            shown = list(self._shown)
            if images or (reprune and shown):
                question = vision.question(turns[-1].text or "", clock)
            if reprune:
                shown = [
                    _Shown(s.seen, keep, vision.prune(s.seen, question, keep, clock))
                    for s, keep in zip(shown, old, strict=True)
                ]
            for image in images:
                seen = vision.see(image, clock)
                shown.append(_Shown(seen, budget, vision.prune(seen, question, budget, clock)))
            return _items(segments, [s.picture for s in shown]), shown

        return run

    def _answer(
        self,
        work: Callable[[Clock], tuple[list[Item], list[_Shown]]],
        turns: list[Turn],
        most: int,
        sampling: Sampling,
    ) -> Generator[str, None, Answer]:
        clock, decoder, sampler = Clock(), self._decoder, Sampler(sampling)
        text, stop = self._pipe.tokenizer.detokenizer(), self._pipe.tokenizer.stop_ids
        items, shown = work(clock)
        reused = decoder.reuse(items)
        with clock.measure("prefill"):
            token = sampler(decoder.prefill(items, most))
        first, prompt_rows = clock.elapsed, decoder.cache.length
        tokens: list[int] = []
        said: list[str] = []
        while token not in stop:
            tokens.append(token)
            if piece := text.step(token):
                said.append(piece)
                yield piece
            if len(tokens) == most:
                break
            with clock.measure("decode"):
                token = sampler(decoder.step(token))
        if piece := text.finish():
            said.append(piece)
            yield piece
        self._shown, self.turns = shown, [*turns, Turn("assistant", "".join(said))]
        steps = decoder.cache.length - prompt_rows
        seconds = clock.seconds
        timings = Timings(
            **seconds,
            first_token=first,
            total=clock.elapsed,
            tokens_per_second=steps / seconds["decode"] if steps else 0.0,
            prompt_rows=prompt_rows,
            reused_rows=reused,
            cache_bytes_allocated=decoder.cache.allocated,
            cache_bytes_used=decoder.cache.used,
        )
        kept = [s.picture.kept for s in shown]
        return Answer("".join(said), tokens, kept, "length" if token not in stop else "stop", timings)


def _listed(images: Images) -> list[ImageSource]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _items(segments: Sequence[Segment], pictures: Sequence[Picture]) -> list[Item]:
    items: list[Item] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            items.append(pictures[segment.index])
        else:
            items += segment.tolist()
    return items
