"""Combinations: a pre-LLM pruner and an in-LLM pruner in one bundle, e.g. ``vscan+pyramiddrop``.

Each is given a share of the user's ``keep``. The default shares are those that VScan was published with
(arXiv 2505.22654): 1.5 ``keep`` tokens enter the language model and 0.5 ``keep`` remain after its middle. Its
layers then hold ``keep`` tokens on average.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.engines.errors import UserError, unknown
from foveate.export.pruning.budgets import SMALLEST_SHARE, Points
from foveate.export.pruning.in_llm import InLLMPruner
from foveate.export.pruning.method import Method, PositionMode
from foveate.export.pruning.options import parse
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.spec import ModelSpec

__all__ = ["CombinedMethod", "OptionsOfBoth", "sorted_options"]


@dataclass(frozen=True)
class CombinedMethod(Method):
    """A ``first`` method that prunes before the language model and a ``second`` one that prunes inside it.

    ``first`` is given ``outer * keep``, at most the number of tokens; ``second`` is given ``inner * keep``.
    Raises UserError (code 2) for methods of another kind and for factors that are not in (0, 100].
    """

    first: Method
    second: Method
    outer: float = 1.5
    inner: float = 0.5

    SHARES: ClassVar[tuple[str, ...]] = ("outer", "inner")

    def __post_init__(self) -> None:
        before = self.first.pre_llm is not None and self.first.in_llm is None
        if not (before and isinstance(self.second, InLLMPruner)):
            raise UserError(
                f"{self.name} is no pair | expected a pre-LLM pruner and an in-LLM pruner, in this order "
                "| for example vscan+pyramiddrop",
                code=2,
            )
        for key in self.SHARES:
            if not 0 < getattr(self, key) <= 100:
                raise UserError(
                    f"{self.name}: bad value for {key} | got {getattr(self, key)}, "
                    f"expected a share above 0, up to 100 | --set {key}=...",
                    code=2,
                )

    @property
    def name(self) -> str:
        """The names of both methods with a plus sign between them."""
        return f"{self.first.name}+{self.second.name}"

    @property
    def position_mode(self) -> PositionMode:
        """The position mode of the first method; the second one has its own."""
        return self.first.position_mode

    @property
    def pre_llm(self) -> PreLLMPruner | None:
        """The pruner of the first method."""
        return self.first.pre_llm

    @property
    def in_llm(self) -> InLLMPruner | None:
        """The pruner of the second method."""
        return self.second.in_llm

    def describe(self) -> dict[str, Any]:
        """Return the two factors, and the options of both methods as ``method.option``."""
        both = {
            f"{method.name}.{key}": value
            for method in (self.first, self.second)
            for key, value in method.describe().items()
        }
        return {key: getattr(self, key) for key in self.SHARES} | both

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        """Return the budgets of both methods, stretched by the factors."""
        assert self.in_llm is not None  # checked when the pair is made
        same: Points = ((SMALLEST_SHARE, SMALLEST_SHARE), (1.0, 1.0))
        stages = [f"pruner.{i}" for i in range(len(self.in_llm.prune_layers(spec.decoder)))]
        own = {"pruner": same, **dict.fromkeys(stages, same)}
        own |= self.first.budgets(spec) | self.second.budgets(spec)
        return {
            stage: tuple((k / (self.outer if stage == "pruner" else self.inner), v) for k, v in points)
            for stage, points in own.items()
        }

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """Return the bounds of both methods."""
        outer, inner = (min(max(1, round(share * keep)), entered) for share in (self.outer, self.inner))
        first = self.first.leaves(spec, outer, entered)
        return first | self.second.leaves(spec, inner, first.get("pruner", outer))


@dataclass(frozen=True)
class OptionsOfBoth:
    """Options as text, by their owner: the combination (already parsed) or one of the two methods."""

    shares: dict[str, float]
    first: dict[str, str]
    second: dict[str, str]


def sorted_options(
    names: tuple[str, str], known: tuple[Collection[str], Collection[str]], options: Mapping[str, str]
) -> OptionsOfBoth:
    """Sort ``options`` by their owner. ``known`` are the names of the options of each method.

    A key may be written ``method.option``. Without a method's name the option must belong to exactly one of
    the two. Raises UserError (code 2) for unknown or ambiguous keys.
    """
    shares: dict[str, float] = {}
    own: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, text in options.items():
        owner, dot, option = key.rpartition(".")
        if not dot and key in CombinedMethod.SHARES:
            shares[key] = parse("+".join(names), key, text, float)
            continue
        owners = [name for name, theirs in zip(names, known, strict=True) if option in theirs]
        if (dot and owner not in owners) or not owners:
            full = [f"{name}.{key}" for name, theirs in zip(names, known, strict=True) for key in theirs]
            raise unknown(f"option of {'+'.join(names)}", key, [*CombinedMethod.SHARES, *full])
        if not dot and len(owners) > 1:
            raise UserError(
                f"both methods have an option {key} | got --set {key}={text} "
                f"| --set {names[0]}.{key}=... or --set {names[1]}.{key}=...",
                code=2,
            )
        own[owner if dot else owners[0]][option] = text
    return OptionsOfBoth(shares, own[names[0]], own[names[1]])
