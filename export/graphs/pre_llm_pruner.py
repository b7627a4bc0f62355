"""The graph ``pruner``: a pre-LLM pruner with its trained network and, if it needs it, the projector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.engines.spec import FLOAT, Dim, GraphSpec, Symbol, TensorSpec
from foveate.export.graphs.graph import Graph
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import TEXT_TAPS, tap_shape
from foveate.export.spec import ModelSpec, VisionSpec

__all__ = ["Pruner", "pruner_graph", "remaining"]


class Pruner(nn.Module):
    """The graph ``pruner``: takes ``keep``, visual tokens and taps, and returns the kept tokens.

    * ``grid``: rows and columns of the tokens. None: those of ``view``, an input after ``keep``.
    * ``trained``: the method's own network. Its outputs are added to the taps.
    * ``projector``: runs last, for methods that act on the features before it.
    """

    def __init__(
        self,
        method: PreLLMPruner,
        taps: tuple[str, ...],
        grid: tuple[int, int] | None,
        trained: nn.Module | None = None,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method, self.taps, self.grid = method, taps, grid
        self.trained, self.projector = trained, projector

    def forward(self, keep: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of ``PreLLMPruner.reduce``.

        ``inputs`` are ``view`` (without a grid), the tokens and the taps.
        """
        names, given = (self.method.source, *self.taps), list(inputs)
        grid: tuple[Keep, Keep]
        if self.grid is None:
            view = given.pop(0)
            grid = view.shape[0], view.shape[1]
            tile = view.reshape(-1)[:1] // given[0].shape[1]
            given = [_seen(view, tile, name, value) for name, value in zip(names, given, strict=True)]
        else:
            grid = self.grid
        tokens, *rest = given
        budget: Keep = keep.item()  # type: ignore[assignment]  # an int64; torch types it as int | float
        torch._check(budget >= 1)
        torch._check(budget <= tokens.shape[1])
        values = dict(zip(self.taps, rest, strict=True))
        if self.trained is not None:
            values |= self.trained(values, budget)
        rows, kept, count, *owner = self.method.reduce(tokens, values, budget, grid)
        if self.projector is not None:
            rows = self.projector(rows)
            if not self.method.fills:  # rows behind count must be 0, but a projector adds biases
                valid = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
                rows = torch.where(valid[:, :, None], rows, torch.zeros_like(rows[:, :1, :1]))
        return rows, kept, count, *owner


def _seen(view: Tensor, tile: Tensor, name: str, value: Tensor) -> Tensor:
    """Select the tokens of ``view [rows,columns]`` from an output ``[tiles,N,...]`` of the vision encoder.

    ``tile [1]`` is the tile of the first token.
    """
    offer = name.split(".")[0]
    if offer in TEXT_TAPS:
        return value
    if offer == "cls_feature":  # [tiles,1,D]
        return value.index_select(0, tile)
    if offer == "cls_attention_heads":  # [tiles,H,N]
        return _seen(view, tile, "", value.transpose(1, 2)).transpose(1, 2)
    return value.flatten(0, 1).index_select(0, view.reshape(-1))[None]


def pruner_graph(spec: ModelSpec, method: PreLLMPruner, projector: nn.Module | None = None) -> Graph:
    """Return the graph ``pruner``. ``projector`` is that of the family, for methods that act before it."""
    vision, taps = spec.vision, method.taps(spec)
    tokens = vision.image_tokens if method.whole else vision.num_tokens
    budget = Symbol("keep", 1, max(1, tokens * 2 // 9), tokens)
    wanted = tuple(dict.fromkeys((method.source, *taps)))
    seen = Symbol("seen", 1, tokens, tokens) if vision.varies else tokens
    width = spec.decoder.hidden_size if projector is not None else tap_shape(spec, method.source)[-1]
    with torch.device("meta"):
        trained = method.module(spec)
    return Graph(
        GraphSpec(
            "pruner",
            inputs=(
                TensorSpec("keep", "int64", (), value=budget),
                *((_view(vision, method.whole),) if vision.varies else ()),
                *(TensorSpec(name, FLOAT, tap_shape(spec, name)) for name in wanted),
            ),
            outputs=remaining(width, budget, 1, seen if method.merges else None),
        ),
        Pruner(method, taps, None if vision.varies else vision.grid, trained, projector),
        names=(("trained.", "pruner."), ("projector.", "vision_encoder.projector.")),
    )


def remaining(width: Dim, rows: Dim, batch: Dim, owned: Dim | None) -> tuple[TensorSpec, ...]:
    """Return the outputs of a pruner: ``tokens`` with ``width`` columns, ``kept``, ``count`` and ``owner``.

    ``owned`` is the number of tokens before pruning, None for methods without ``owner``.
    """
    found = (
        TensorSpec("tokens", FLOAT, (batch, rows, width)),
        TensorSpec("kept", "int64", (batch, rows)),
        TensorSpec("count", "int64", (batch,)),
    )
    return found if owned is None else (*found, TensorSpec("owner", "int64", (batch, owned)))


def _view(vision: VisionSpec, whole: bool) -> TensorSpec:
    """Return the input with the indices of the tokens that the pruner sees, counted tile after tile.

    With ``whole`` all tokens of the image are one row.
    """
    (rows, columns), side = vision.grid, vision.longest_side
    if whole:
        return TensorSpec(
            "view", "int64", (1, Symbol("columns", 1, vision.image_tokens, vision.image_tokens))
        )
    return TensorSpec("view", "int64", (Symbol("rows", 1, rows, side), Symbol("columns", 1, columns, side)))
