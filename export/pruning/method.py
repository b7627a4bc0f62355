"""The base class of pruning methods: options, taps, and a pure function from N visual tokens to fewer.

A method is a frozen dataclass called ``Method`` whose fields are its options. It sees tensors only, never a
model. A method that ranks tokens derives from ``Scorer`` and writes ``score``; the selection is done here. A
method that picks tokens in a loop, or merges them, writes ``reduce``.

The method's row in README comes from its file. The first line of the docstring is ``name: what it keeps.``,
and the first ``arXiv 1234.56789`` in the docstring is the source.

Rules for ``reduce``, so that one graph serves ONNX Runtime and TensorRT:

* No shape depends on data: no nonzero, no boolean indexing.
* ``keep`` is a number that is known at run time only.
* Scores and selection are float32 or integers, whatever the tokens' dtype.
* New tensors are made on the tokens' device, which may be ``meta``.
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
"""Taps of a numbered layer. Taps without one: ``features cls_feature clip_image text_embeds clip_text``."""


def option(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """Return a dataclass field with a default and the range of its values, bounds included."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Method:
    """Base class of all methods. Its fields are options; bad values raise UserError (code 2).

    ``position_mode``: "compact" renumbers the position ids of the kept tokens, "keep" leaves them as they
    were.
    """

    position_mode: Literal["compact", "keep"] = "compact"

    our_reading: ClassVar[bool] = False
    """True when the paper leaves formulas open and has no public code. The module's docstring says what is
    our reading."""

    reads_question: ClassVar[bool] = False
    """True when the selection depends on the prompt's text."""

    where: ClassVar[Literal["encoder", "before", "inside"]] = "before"
    """Kind of the method: "encoder" is an encoder merger (``merging``), "before" a pre-LLM pruner, "inside"
    an in-LLM pruner (``export/pruning/in_llm.py``)."""

    source: ClassVar[Literal["projected", "features"]] = "projected"
    """Kind of tokens that ``reduce`` gets. With "features" the projector runs in the pruner's graph, after
    the method."""

    prunes: ClassVar[bool] = True
    """False when every token stays and the bundle has no pruner graph."""

    fills: ClassVar[bool] = True
    """True when ``count`` always equals ``keep``; False when it depends on the image.

    A pre-LLM pruner then returns at most ``keep`` valid rows; rows behind ``count`` are 0 and their ``kept``
    is -1. For an in-LLM pruner ``leaves`` gives the upper bound."""

    merges: ClassVar[bool] = False
    """True when rows may be mixtures of tokens. ``reduce`` then also returns the row that each token went
    into."""

    whole: ClassVar[bool] = False
    """Scope of ``reduce`` for images that are encoded in tiles.

    False: each tile by itself, with a share of the budget. True: all tokens of the image at once, as a
    ``grid`` of one row.
    """

    def __post_init__(self) -> None:
        kinds = self.options()
        for field in dataclasses.fields(self):
            _validate(self.name, field, kinds[field.name], getattr(self, field.name))

    @property
    def name(self) -> str:
        """The method's name, which is the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def encoder(self) -> Method | None:
        """This method if it is an encoder merger, else None."""
        return self if self.where == "encoder" else None

    @property
    def before(self) -> Method | None:
        """This method if it is a pre-LLM pruner, else None."""
        return self if self.prunes and self.where == "before" else None

    @property
    def inside(self) -> Any:
        """This method if it is an in-LLM pruner (an ``Inside``), else None."""
        return self if self.where == "inside" else None

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        """Map the user's ``keep`` to the budget of each stage, as points by the stage's name.

        A point is (share of the image's tokens that the user asks for, share that the stage is given). Points
        are joined by straight lines in logarithms. A stage without points is given ``keep`` itself.
        """
        return {}

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """Return an upper bound of the rows that each stage keeps of an image with ``entered`` rows.

        It serves cost estimates only. A stage that is missing here keeps exactly its budget.
        """
        return {}

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the option names with their types."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return the names of the taps that ``reduce`` reads, made with ``tap``. They may depend on options.

        A method that can use one of several taps looks into ``spec.taps``. ``assemble`` refuses taps that the
        family does not offer, and names the methods that would work.
        """
        return ()

    def module(self, spec: ModelSpec) -> nn.Module | None:
        """Return the module that holds the method's trained weights (named ``pruner.*``), or None."""
        return None

    def merging(self, spec: ModelSpec) -> StartMerging:
        """Return what an encoder merger does in the vision encoder's layers. It reads the tap ``layers``."""
        raise NotImplementedError

    def fixed_keep(self, spec: ModelSpec) -> int | None:
        """Return the number of tokens per image when the build fixes it; None when run time chooses it."""
        return None

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Return the tokens that stay.

        Arguments:

        * ``tokens [B,N,D]`` in raster order of ``grid``.
        * ``taps``: the taps by the names that ``self.taps`` returned.
        * ``keep``: number of tokens to keep, 1..N.
        * ``grid``: rows and columns, N = rows * columns. Like ``keep`` they are known only at run time in
          families whose images vary in size.

        Returns:

        * ``tokens [B,R,D]`` in the dtype of the input. R depends on ``keep`` alone.
        * ``kept [B,R]`` int64: the token whose place each row takes. Places are distinct, and ascending
          unless the method says otherwise; -1 is a row without a place.
        * ``count [B]`` int64: the number of valid rows.
        * ``owner [B,N]`` int64, only from methods with ``merges``: the row that each token is part of, -1
          for none. A token whose place a row takes is part of that row.
        """
        raise NotImplementedError


class Scorer(Method):
    """Base class of methods that rank: exactly ``keep`` tokens with the best scores stay, first of equals."""

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]) -> Tensor:
        """Return a score per token, ``[B,N]`` float32; higher scores stay. Arguments as in ``reduce``."""
        raise NotImplementedError

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = marked(rank(self.score(tokens, taps, keep, grid)) < keep, keep)
        return gather(tokens, kept), kept, count(kept)


def rank(score: Tensor) -> Tensor:
    """Return the place of each entry, 0 for the highest, first of equals ahead: ``[B,N]`` float32.

    It counts pairwise comparisons instead of sorting, because TensorRT's TopK does not define the order of
    ties.
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))  # [B,N,N]
    return ahead.float().sum(-1)


def marked(mask: Tensor, keep: Keep) -> Tensor:
    """Return the ascending indices ``[B,keep]`` int64 of the true entries of ``mask [B,N]``, which has
    ``keep`` of them."""
    size = mask.shape[1]
    index = torch.arange(size, device=mask.device)
    key = torch.where(
        mask, 2 * size - index, size - index
    ).float()  # distinct, so no engine has to break ties
    return key.topk(keep, dim=1).indices


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the rows ``kept [B,R]`` of ``tokens [B,N,D]``, bit for bit: ``[B,R,D]``."""
    batch, size, width = tokens.shape
    first = torch.arange(batch, device=kept.device)[:, None] * size
    return F.embedding(kept + first, tokens.reshape(batch * size, width))


def count(kept: Tensor) -> Tensor:
    """Return ``[B]`` int64 with the number of rows R of ``kept [B,R]``, all of them valid."""
    return torch.ones_like(kept).sum(1)


def sampled(total: int, count: Callable[[int], dict[str, int]]) -> dict[str, Points]:
    """Sample the points of ``Method.budgets`` at up to 33 budgets from 1 to ``total``, evenly spaced in
    logarithms.

    ``count`` returns the number of tokens that each stage is given for a budget.
    """
    asked = sorted({round(total ** (i / 32)) for i in range(33)})
    rows = [count(keep) for keep in asked]
    return {
        stage: tuple((keep / total, row[stage] / total) for keep, row in zip(asked, rows, strict=True))
        for stage in rows[0]
    }


def tap(spec: ModelSpec, offer: str, layer: int = -1) -> str:
    """Return the name that a tap has in graphs, e.g. ``cls_attention.22`` for layer -1 of 23.

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
    """Return the layer with full attention that is nearest to ``share`` of the vision encoder's depth.

    Of two equally near layers it is the later one. In a layer with full attention all tokens see each other.
    """
    layer = round(share * spec.vision.depth)
    return min(spec.vision.full, key=lambda full: (abs(full - layer), -full))


def parse(method: str, key: str, text: str, kind: Any) -> Any:
    """Parse ``text`` as a value of the option's type ``kind``.

    Types are bool, int, float, str, a Literal, ``X | None`` and tuples of these. Raises UserError (code 2)
    for text that is no number where one is wanted; other bad values come back as text for ``Method`` to
    refuse.
    """
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
