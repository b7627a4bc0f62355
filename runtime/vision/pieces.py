"""Pieces of an image after pruning, and how they are joined into one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines.buffer import Buffer
from foveate.engines.row_gather import Rows
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.llm.visual_tokens import VisualTokens

__all__ = ["Owner", "Piece", "join", "merged_pieces", "piece_of"]


@dataclass(frozen=True, eq=False)
class Owner:
    """A map: ``tokens`` int64 [N] of an image went into ``rows`` int64 [N] of a piece."""

    tokens: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Piece:
    """The rest of a piece of an image.

    ``tokens`` [R,D]. ``kept`` [R]: the visual tokens of the image that they are, -1 for mixtures. ``order``
    [R]: sort keys of the rows among all rows of the image. ``owner`` is None for methods that do not merge.
    """

    tokens: Rows
    kept: np.ndarray
    order: np.ndarray
    owner: Owner | None = None

    def of_the_image(self) -> Piece:
        """Return the piece without rows that are no visual token of the image, such as padding."""
        stay = self.kept >= 0
        owner = self.owner
        if owner is not None:
            mine = stay[owner.rows]
            owner = Owner(owner.tokens[mine], (np.cumsum(stay) - 1)[owner.rows[mine]])
        return Piece(self.tokens.take(stay), self.kept[stay], self.order[stay], owner)


def piece_of(outputs: Mapping[str, Buffer], places: np.ndarray) -> Piece:
    """Return the rest of a piece from a pruner's ``outputs``.

    ``places`` are the piece's visual tokens in the image, -1 for those not in it.
    """
    ((tokens, facts),) = _tiles(outputs)
    return _piece(tokens, facts, places)


def merged_pieces(outputs: Mapping[str, Buffer], layout: Layout) -> list[Piece]:
    """Return what an encoder merger left of each tile, without tokens that show padding."""
    size = outputs["owner"].shape[1]
    place = np.full(layout.tiles * size, -1)
    place[layout.order[layout.order >= 0]] = layout.whole[0]
    return [
        _piece(tokens, facts, places).of_the_image()
        for (tokens, facts), places in zip(_tiles(outputs), place.reshape(layout.tiles, size), strict=True)
    ]


def join(pieces: Sequence[Piece], layout: Layout, keep: int) -> VisualTokens:
    """Join the pieces into one image. Rows are in the order of the image's visual tokens.

    Mixtures without a place among the tokens come last. ``keep`` is the image's budget.
    """
    tokens = Rows.join([piece.tokens for piece in pieces])
    kept = np.concatenate([piece.kept for piece in pieces])
    rank = np.argsort(np.concatenate([piece.order for piece in pieces]), kind="stable")
    owner = None
    if any(piece.owner is not None for piece in pieces):
        owner, first, row = np.full(layout.total, -1), 0, np.argsort(rank)
        for piece in pieces:
            if piece.owner is None:
                owner[piece.kept] = row[first : first + len(piece.kept)]
            else:
                owner[piece.owner.tokens] = row[first + piece.owner.rows]
            first += len(piece.kept)
    return VisualTokens(tokens.take(rank), kept[rank], layout, keep, owner)


def _tiles(outputs: Mapping[str, Buffer]) -> list[tuple[Rows, dict[str, np.ndarray]]]:
    """Return what was left of each tile: its rows, not copied, and integers about them on the host."""
    tokens, width = Rows(outputs["tokens"]), outputs["tokens"].shape[1]
    facts = {name: value.numpy() for name, value in outputs.items() if name != "tokens"}
    return [
        (
            tokens.take(slice(tile * width, (tile + 1) * width)),
            {name: value[tile] for name, value in facts.items()},
        )
        for tile in range(len(facts["count"]))
    ]


def _piece(tokens: Rows, facts: Mapping[str, np.ndarray], places: np.ndarray) -> Piece:
    """Return the rest of a piece, from an entry of ``_tiles``. ``places`` as for ``piece_of``.

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
        owner = Owner(places[mine], facts["owner"][mine])
    return Piece(tokens.take(slice(count)), kept, order, owner)
