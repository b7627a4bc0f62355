"""What a pruning method is: options, the taps it reads, and a pure function from N visual tokens to fewer.

A method is a frozen dataclass called ``Method``; its fields are its options. It sees tensors only, never a
model. ``Scorer`` is for methods that rank: they write ``score``, the selection is done here. A method that
picks in a loop or merges writes ``reduce``.

README's row of a method comes from its file: the first line of the docstring is ``name: what it keeps.``, and the first
``arXiv 1234.56789`` in the docstring is the source.

Rules for ``reduce``, so that one graph serves ONNX Runtime and TensorRT: no shape may depend on data (no
nonzero, no boolean indexing), ``keep`` is a run-time number, scores and selection are float32 or integers
whatever the tokens' dtype, and new tensors are made on the tokens' device (they may be ``meta`` tensors).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engines.errors import UserError
from foveate.export.spec import ModelSpec, StartMerging

__all__ = [
    "Keep",
    "Method",
    "Points",
    "Scorer",
    "full_layer",
    "gather",
    "marked",
    "option",
    "parse",
    "rank",
    "sampled",
    "tap",
]

Keep = int | torch.SymInt
Points = tuple[tuple[float, float], ...]
LAYERED = ("cls_attention", "cls_attention_heads", "received_attention", "keys", "hidden")
"""Taps with a layer; the others are ``features``, ``cls_feature``, ``clip_image``, ``text_embeds``, ``clip_text``."""


def option(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field with a default and the range its value must lie in, bounds included."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Method:
    """A pruner. Options are fields; out-of-range or mistyped values raise UserError (code 2).

    ``position_mode``: "compact" renumbers the kept tokens' positions, "keep" keeps the original ones.
    """

    position_mode: Literal["compact", "keep"] = "compact"

    our_reading: ClassVar[bool] = False
    """True: the publication leaves formulas open and there is no public code; the module's docstring says what is ours."""

    reads_question: ClassVar[bool] = False
    """Whether the choice depends on the prompt's text."""

    where: ClassVar[Literal["encoder", "before", "inside"]] = "before"
    """Inside the vision encoder (``merging``), before the language model, or inside it (``export/pruning/in_llm.py``)."""

    source: ClassVar[Literal["projected", "features"]] = "projected"
    """What ``tokens`` are. With ``features`` the projector sits in the pruner's graph, behind the method."""

    prunes: ClassVar[bool] = True
    """False: every token stays and the bundle has no pruner graph."""

    fills: ClassVar[bool] = True
    """``count`` is ``keep``. False: it depends on the image. It is at most ``keep`` before the language model, where rows
    behind it are 0 and ``kept`` is -1; inside, ``leaves`` gives the most."""

    merges: ClassVar[bool] = False
    """True: rows may be mixtures of tokens; ``reduce`` then also says which row each token went into."""

    whole: ClassVar[bool] = False
    """Where pictures are encoded in tiles: False, each tile by itself, with a share of the budget; True, all of the picture's
    tokens at once, ``grid`` one row of them."""

    def __post_init__(self) -> None:
        kinds = self.options()
        for field in dataclasses.fields(self):
            _validate(self.name, field, kinds[field.name], getattr(self, field.name))

    @property
    def name(self) -> str:
        """The method's name: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def encoder(self) -> Method | None:
        """What merges inside the vision encoder: this method, or None."""
        return self if self.where == "encoder" else None

    @property
    def before(self) -> Method | None:
        """What prunes before the language model: this method, or None."""
        return self if self.prunes and self.where == "before" else None

    @property
    def inside(self) -> Any:
        """What prunes inside the language model (an ``Inside``): this method, or None."""
        return self if self.where == "inside" else None

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        """How the user's ``keep`` becomes the number that a stage's graph is given: points (share of the picture's tokens
        asked for, share given), joined by straight lines in logarithms. A stage without points is given ``keep`` itself.
        """
        return {}

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """At most how many of ``entered`` rows of a picture each stage leaves when ``keep`` is asked for, where that is another
        number than the stage is given. It is there to tell costs; nothing runs by it."""
        return {}

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Option names with their types."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the tensors ``reduce`` reads besides the tokens, made with ``tap``; may depend on options.

        A method that can do with one of several looks into ``spec.taps``. What the family does not offer is
        refused by ``assemble``, which knows the methods that would work.
        """
        return ()

    def module(self, spec: ModelSpec) -> nn.Module | None:
        """The method's trained weights as a module (``pruner.`` in the weights' names), or None."""
        return None

    def merging(self, spec: ModelSpec) -> StartMerging:
        """What a method of the vision encoder does in its layers; it reads the tap ``layers``."""
        raise NotImplementedError

    def fixed_keep(self, spec: ModelSpec) -> int | None:
        """How many tokens a picture always has, where that is decided when the bundle is built; None: at run time."""
        return None

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """The tokens that stay.

        In: ``tokens [B,N,D]`` in raster order of ``grid`` (rows, columns; N = rows * columns; as ``keep`` these are run-time
        numbers in families whose pictures vary), ``taps`` by the names that ``taps`` gave, ``keep`` in 1..N.
        Out: ``tokens [B,R,D]`` (dtype as given), ``kept [B,R]`` int64, ``count [B]`` int64, the number of valid rows.
        R depends on ``keep`` alone. ``kept`` says where a row stands: distinct tokens, ascending unless the method says
        otherwise, -1 for a row that stands nowhere. A method that ``merges`` adds ``owner [B,N]`` int64: the row that each
        token is part of, -1 if none; a token where a row stands is part of that row.
        """
        raise NotImplementedError


class Scorer(Method):
    """A method that ranks tokens: exactly ``keep`` best-scored tokens stay, equal scores by first index."""

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]) -> Tensor:
        """``[B,N]`` float32, higher stays. Arguments as in ``reduce``."""
        raise NotImplementedError

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = marked(rank(self.score(tokens, taps, keep, grid)) < keep, keep)
        return gather(tokens, kept), kept, count(kept)


def rank(score: Tensor) -> Tensor:
    """Place of each entry, 0 for the highest, equal ones by first index: ``[B,N]`` -> ``[B,N]`` float32.

    Counted by pairwise comparison: unlike a sort, that leaves ties to no engine (TensorRT's TopK promises none).
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))  # [B,N,N]
    return ahead.float().sum(-1)


def marked(mask: Tensor, keep: Keep) -> Tensor:
    """Ascending indices ``[B,keep]`` int64 of the marked places; ``mask [B,N]`` must have ``keep`` of them."""
    size = mask.shape[1]
    index = torch.arange(size, device=mask.device)
    key = torch.where(
        mask, 2 * size - index, size - index
    ).float()  # distinct, so no engine has to break ties
    return key.topk(keep, dim=1).indices


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows ``kept [B,R]`` of ``tokens [B,N,D]``, bit for bit: ``[B,R,D]``."""
    batch, size, width = tokens.shape
    first = torch.arange(batch, device=kept.device)[:, None] * size
    return F.embedding(kept + first, tokens.reshape(batch * size, width))


def count(kept: Tensor) -> Tensor:
    """``[B]`` int64: all rows of ``kept [B,R]`` are valid."""
    return torch.ones_like(kept).sum(1)


def sampled(total: int, count: Callable[[int], dict[str, int]]) -> dict[str, Points]:
    """Points, as ``Method.budgets`` has them, of what ``count`` says of budgets from 1 to ``total`` in even ratios."""
    asked = sorted({round(total ** (i / 32)) for i in range(33)})
    rows = [count(keep) for keep in asked]
    return {
        stage: tuple((keep / total, row[stage] / total) for keep, row in zip(asked, rows, strict=True))
        for stage in rows[0]
    }


def tap(spec: ModelSpec, offer: str, layer: int = -1) -> str:
    """The name of a tap as graphs carry it, e.g. ``cls_attention.22`` for layer -1 of 23.

    Raises UserError (code 2) when the vision encoder has no such layer.
    """
    if offer not in LAYERED:
        return offer
    depth = spec.vision.depth
    if not -depth <= layer < depth:
        raise UserError(
            f"no vision layer {layer} for {offer} | {spec.family} runs {depth} layers, expected "
            f"{-depth}..{depth - 1} | set another layer",
            code=2,
        )
    return f"{offer}.{layer % depth}"


def full_layer(spec: ModelSpec, share: float) -> int:
    """At ``share`` of the vision encoder's depth, or the nearest layer whose tokens all see each other, the later of two."""
    layer = round(share * spec.vision.depth)
    return min(spec.vision.full, key=lambda full: (abs(full - layer), -full))


def parse(method: str, key: str, text: str, kind: Any) -> Any:
    """``text`` as a value of the option's type: bool, int, float, str, a Literal, ``X | None``, a tuple of these."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        return None if text.lower() == "none" else parse(method, key, text, rest[0])
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        return tuple(parse(method, key, part, args[0]) for part in parts)
    if origin is Literal:
        return next((choice for choice in args if str(choice) == text), text)
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        raise _misfit(method, key, text, kind, None) from None


def _validate(method: str, field: dataclasses.Field[Any], kind: Any, value: Any) -> None:
    bounds = (field.metadata.get("low"), field.metadata.get("high"))
    if not _fits(kind, value, bounds):
        raise _misfit(method, field.name, value, kind, bounds)


def _fits(kind: Any, value: Any, bounds: tuple[float | None, float | None]) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(arg, value, bounds) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], item, bounds) for item in value)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if kind is float and type(value) is int:
        kind = int
    if type(value) is not kind:
        return False
    if kind not in (int, float):
        return True
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high) and abs(value) < float("inf")


def _misfit(
    method: str, key: str, value: Any, kind: Any, bounds: tuple[float | None, float | None] | None
) -> UserError:
    low, high = bounds or (None, None)
    if typing.get_origin(kind) is Literal:
        wanted = "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    else:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        if low is not None or high is not None:
            wanted += f" in {'' if low is None else low}..{'' if high is None else high}"
    return UserError(
        f"{method}: bad value for {key} | got {value}, expected {wanted} | --set {key}=...", code=2
    )
