"""Stages before the language model: an image and a question go in, and the kept visual tokens come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines.buffer import Buffer, Feed
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, Symbol
from foveate.runtime.answer import Clock
from foveate.runtime.bundle.arrays import array
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.finite import first_wrong, lies_on_host, refuse
from foveate.runtime.images.image_file import load_image, size_of
from foveate.runtime.images.image_source import ImageSource
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import Layout, single, split
from foveate.runtime.images.view import View
from foveate.runtime.llm.budget import Keep, resolve_keep, stage_keep
from foveate.runtime.llm.decoder import VisualTokens
from foveate.runtime.text.chat_prompt import ChatTokenizer, clip_segments, load_tokenizer
from foveate.runtime.video.video_file import Video

__all__ = ["Seen", "VisionStages"]


@dataclass(frozen=True, eq=False)
class Seen:
    """An image after the vision encoder.

    ``outputs`` are ``projected`` (the visual tokens) and the taps, left where the engine put them. For a
    video they hold the rows of all its steps. ``view`` tells where the visual tokens lie on the original.
    """

    outputs: dict[str, Buffer] | dict[str, Rows]
    layout: Layout
    view: View


class VisionStages:
    """The engine ``vision_encoder``, and ``text_encoder`` and ``pruner`` if the bundle has them."""

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, Engine], tokenizer: ChatTokenizer, table: np.ndarray
    ) -> None:
        manifest, self._bundle = bundle.manifest, bundle
        self.processor = image_processor(manifest.image)
        self._grid, self._method = manifest.grid, manifest.method
        self._total, self._points = manifest.num_visual_tokens, manifest.budgets.get("pruner", ())
        self._encoder = engines["vision_encoder"]
        self._pruner = engines.get("pruner")
        self._text = engines.get("text_encoder")
        self._tokenizer, self._table = tokenizer, table
        self._clip = load_tokenizer(bundle.file("clip_tokenizer.json")) if self._text else None
        newline = bundle.file("image_newline.npy")
        self._newline = Rows(array(newline)[None, None]) if newline.is_file() else None

    @property
    def merges(self) -> bool:
        """Return whether the vision encoder's own layers merge tokens (an encoder merger)."""
        return self._method.get("fixed_keep") is not None

    @property
    def prunes(self) -> bool:
        """Return whether the budget can be smaller than an image's number of visual tokens."""
        return self.merges or self._pruner is not None

    @property
    def varies(self) -> bool:
        """Return whether the number of visual tokens depends on the image."""
        return self.processor.varies

    def layout(self, image: ImageSource | Video | Seen) -> Layout:
        """Return the layout of an image's visual tokens.

        Raises UserError if the layout depends on the image and the image cannot be read.
        """
        if isinstance(image, Seen):
            return image.layout
        if isinstance(image, Video):
            if self.processor.video is None:
                raise UserError(
                    "this model takes no videos | expected images | give frames of it with --image", code=2
                )
            return self.processor.video.token_layout(image.size, len(image.frames), image.interval)
        if not self.varies:
            return single(self._grid)
        return self.processor.token_layout(size_of(image), self._grid)

    def budget(self, keep: Keep, plan: Layout | None = None) -> int:
        """Return the budget that ``keep`` gives an image with layout ``plan``.

        None: the largest image there is.

        Raises UserError.
        """
        total, tiles = (plan.total, plan.tiles) if plan else (self._total, 1)
        method = (
            {**self._method, "fixed_keep": self._method["fixed_keep"] * tiles}
            if self.merges
            else self._method
        )
        largest = None if self._pruner is None or self.varies else self._pruner.spec.input("keep").value.max
        return resolve_keep(keep, total, method, largest)

    def most_rows(self, keep: int, total: int) -> int:
        """Return the largest number of rows of an image that enter the language model.

        ``total`` is the image's number of visual tokens, ``keep`` its budget.
        """
        if self._pruner is None:
            return min(keep, total) if self.merges else total
        return stage_keep(self._points, keep, total)

    def see(self, image: ImageSource | Video, clock: Clock) -> Seen:
        plan = self.layout(image)
        view = self.processor.view(image.size if isinstance(image, Video) else size_of(image), plan)
        found: list[dict[str, Buffer]] = []
        steps = self.processor.video.preprocess(image.frames) if isinstance(image, Video) else None
        for _ in range(plan.steps):
            with clock.measure("preprocess"):
                pixels = self.processor.preprocess(load_image(image)) if steps is None else next(steps)
            with clock.measure("vision"):
                spec = self._encoder.spec.input("pixel_values")
                feeds = {"pixel_values": pixels.astype(spec.dtype, copy=False), **plan.feeds}
                found.append(self._run(self._encoder, feeds))
        if len(found) == 1:
            return Seen(found[0], plan, view)
        return Seen({name: Rows.join([Rows(each[name]) for each in found]) for name in found[0]}, plan, view)

    def question(self, text: str, clock: Clock) -> dict[str, Feed]:
        """Return what the pruner reads of the question: ``text_embeds``, ``clip_text``, both or neither."""
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

    def prune(self, seen: Seen, question: Mapping[str, Feed], keep: int, clock: Clock) -> VisualTokens:
        """Return the image with its kept tokens, or with all if there is no pre-LLM pruner."""
        plan = seen.layout
        with clock.measure("prune"):
            if self.merges:
                pieces = self._merged(seen)
            elif self._pruner is None:
                rows = self._read(_rows(seen.outputs["projected"]), plan.order)
                return VisualTokens(rows, np.arange(plan.total), plan.total, keep, layout=plan)
            else:
                pieces = self._pruned(seen, question, self.most_rows(keep, plan.total))
            return self._joined(pieces, plan, keep)

    def _pruned(self, seen: Seen, question: Mapping[str, Feed], budget: int) -> list[_Piece]:
        """Run the pruner on each piece of the image.

        Newline tokens get what the budget leaves after all others.
        """
        plan, spec = seen.layout, self._pruner.spec
        pieces = [plan.whole] if self._method.get("whole") else plan.pieces
        shares = split(min(budget, plan.whole.size), [piece.size for piece in pieces])
        given = {
            name: self._pruner.gather(name, value) if isinstance(value, Rows) else value
            for name, value in seen.outputs.items()
        }
        found = []
        for piece, share in zip(pieces, shares, strict=True):
            if not share:
                continue
            known = {**given, **question, "keep": np.array(share, np.int64), "view": plan.order[piece]}
            outputs = self._run(self._pruner, {tensor.name: known[tensor.name] for tensor in spec.inputs})
            found.append(_piece(*_survivors(outputs)[0], piece.ravel()))
        if budget > plan.whole.size:
            lines = plan.newlines[: budget - plan.whole.size]
            found.append(_Piece(self._newline.take(plan.order[lines]), lines, lines, None))
        return found

    def _merged(self, seen: Seen) -> list[_Piece]:
        """Return what the encoder merger left of each tile, without tokens that show padding."""
        plan, size = seen.layout, seen.outputs["owner"].shape[1]
        place = np.full(plan.tiles * size, -1)
        place[plan.order[plan.order >= 0]] = plan.whole[0]
        found = []
        for left, where in zip(_survivors(seen.outputs), place.reshape(plan.tiles, size), strict=True):
            piece = _piece(*left, where)
            found.append(piece.take(piece.kept >= 0))
        return found

    def _joined(self, pieces: list[_Piece], plan: Layout, keep: int) -> VisualTokens:
        """Join the pieces into one image. Rows are in the order of the image's visual tokens.

        Mixtures without a place among the tokens come last.
        """
        tokens = Rows.join([piece.tokens for piece in pieces])
        kept, order = (
            np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("kept", "order")
        )
        rank = np.argsort(order, kind="stable")
        owner = None
        if any(piece.owner is not None for piece in pieces):
            owner, first, row = np.full(plan.total, -1), 0, np.argsort(rank)
            for piece in pieces:
                if piece.owner is None:
                    owner[piece.kept] = row[first : first + len(piece.kept)]
                else:
                    mine, rows = piece.owner
                    owner[mine] = row[first + rows]
                first += len(piece.kept)
        return VisualTokens(tokens.take(rank), kept[rank], plan.total, keep, owner, layout=plan)

    def _read(self, rows: Rows, order: np.ndarray) -> Rows:
        """Return visual tokens [T,D] out of the vision encoder's ``rows`` [N,D].

        ``order`` [T] gives the row of each token. -1 stands for the newline, which is appended as the last
        row.
        """
        return (rows if self._newline is None else Rows.join([rows, self._newline])).take(order)

    def _text_embeds(self, text: str) -> np.ndarray:
        """Return [1, W, D]: the embeddings of the words' tokens, at most as many as the graph takes.

        Returns one zero row for a text without tokens.
        """
        spec = self._pruner.spec.input("text_embeds")
        ids = self._tokenizer.encode_text(text)[: _limit(self._pruner.spec, "text_embeds")]
        rows = self._table[ids] if len(ids) else np.zeros((1, self._table.shape[1]))
        return rows.astype(spec.dtype)[None]

    def _clip_text(self, text: str) -> Feed:
        """Return CLIP's features of the text, [1, S, J], one row per segment.

        A text without segments gives one zero row.
        """
        spec = self._text.spec.input("input_ids")
        segments = clip_segments(text, self._clip, spec.shape[1])[
            : _limit(self._text.spec, "input_ids", axis=0)
        ]
        if not len(segments):
            target = self._pruner.spec.input("clip_text")
            return np.zeros((1, 1, target.shape[2]), target.dtype)
        return self._run(self._text, {"input_ids": segments})["clip_text"]

    def _run(self, engine: Engine, feeds: Mapping[str, Feed]) -> dict[str, Buffer]:
        """Run a graph and return its outputs.

        Raises UserError if an output in host memory holds NaN or infinity.
        """
        outputs = dict(engine.run(feeds))
        rows = int(outputs["count"].numpy().max()) if "count" in outputs else None
        seen = {name: output for name, output in outputs.items() if lies_on_host(output)}
        if wrong := first_wrong(seen, rows):
            raise refuse(self._bundle, engine.spec.name, outputs[wrong].dtype, wrong)
        return outputs

    def fault(self, seen: Seen, visual: VisualTokens) -> UserError | None:
        """Return the error for an image whose features hold NaN or infinity, on host or device.

        None if all are finite.
        """
        if wrong := first_wrong(seen.outputs):
            return refuse(self._bundle, "vision_encoder", self._dtype(self._encoder), wrong)
        if self._pruner is not None and first_wrong({"tokens": visual.tokens}):
            return refuse(self._bundle, "pruner", self._dtype(self._pruner), "tokens")
        return None

    @staticmethod
    def _dtype(engine: Engine) -> str:
        return engine.spec.outputs[0].dtype


@dataclass(frozen=True, eq=False)
class _Piece:
    """The rest of a piece of an image.

    ``tokens`` [R,D]. ``kept`` [R]: the visual tokens of the image that they are, -1 for mixtures. ``order``
    [R]: sort keys of the rows among all rows of the image. ``owner``: visual tokens, and for each the row of
    ``tokens`` that it went into.
    """

    tokens: Rows
    kept: np.ndarray
    order: np.ndarray
    owner: tuple[np.ndarray, np.ndarray] | None

    def take(self, rows: np.ndarray) -> _Piece:
        """Return the piece with the rows that ``rows`` [R] bool marks."""
        places, row = self.owner
        mine = rows[row]
        owner = places[mine], (np.cumsum(rows) - 1)[row[mine]]
        return _Piece(self.tokens.take(rows), self.kept[rows], self.order[rows], owner)


def _survivors(outputs: Mapping[str, Buffer]) -> list[tuple[Rows, dict[str, np.ndarray]]]:
    """Return what a pruner left of each tile: its rows, not copied, and integers about them on the host."""
    tokens, width = Rows(outputs["tokens"]), outputs["tokens"].shape[1]
    facts = {name: value.numpy() for name, value in outputs.items() if name != "tokens"}
    return [
        (
            tokens.take(slice(tile * width, (tile + 1) * width)),
            {name: value[tile] for name, value in facts.items()},
        )
        for tile in range(len(facts["count"]))
    ]


def _piece(tokens: Rows, facts: Mapping[str, np.ndarray], places: np.ndarray) -> _Piece:
    """Return the rest of a piece, from an entry of ``_survivors``.

    ``places`` are the piece's visual tokens in the image, -1 for those not in it.
    Rows keep the method's order. Some methods put rows out of the image's order, such as VisionZip's mixtures
    after its tokens. From the first such row on, rows go to the end of the image.
    """
    count = int(facts["count"])
    index = facts["kept"][:count]
    stand = np.maximum.accumulate(index)
    behind = np.maximum.accumulate((index >= 0) & (index < stand))
    kept = np.where(index < 0, -1, places[index])
    order = np.where(behind, np.iinfo(np.int64).max, places[stand.clip(min=0)])
    owner = None
    if "owner" in facts:
        mine = np.flatnonzero((facts["owner"] >= 0) & (places >= 0))
        owner = places[mine], facts["owner"][mine]
    return _Piece(tokens.take(slice(count)), kept, order, owner)


def _rows(projected: Buffer | Rows) -> Rows:
    """Return ``[tiles,N,D]`` as a lazy selection of rows."""
    return projected if isinstance(projected, Rows) else Rows(projected)


def _limit(spec: GraphSpec, name: str, axis: int = 1) -> int:
    dim = spec.input(name).shape[axis]
    return dim.max if isinstance(dim, Symbol) else dim
