"""Two methods at work together: one before the language model, one inside it, e.g. ``vscan+pyramiddrop``.

Both are given shares of the user's ``keep``. The defaults are those that VScan was published with (arXiv 2505.22654):
1.5 ``keep`` enter the language model, 0.5 ``keep`` are left behind its middle, so that ``keep`` is what its layers
hold on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.engines.errors import UserError, unknown
from foveate.export.pruning.in_llm import Inside
from foveate.export.pruning.method import Method, Points, parse
from foveate.export.spec import ModelSpec

__all__ = ["Pair"]

_LEAST = 2.0**-20  # a share below that of one token of any picture


@dataclass(frozen=True)
class Pair:
    """``before`` is given ``outer`` times the user's keep (every token at most), ``inside`` ``inner`` times."""

    before: Method
    inside: Inside
    outer: float = 1.5
    inner: float = 0.5

    encoder: ClassVar[None] = None
    SHARES: ClassVar[tuple[str, ...]] = ("outer", "inner")

    def __post_init__(self) -> None:
        name = f"{self.before.name}+{self.inside.name}"
        alone = self.before.before is not None and self.before.inside is None
        if not (alone and isinstance(self.inside, Inside)):
            raise UserError(
                f"{name} is no pair | expected a method before the language model and one inside it, in this order "
                "| for example vscan+pyramiddrop",
                code=2,
            )
        for key in self.SHARES:
            if not 0 < getattr(self, key) <= 100:
                raise UserError(
                    f"{name}: bad value for {key} | got {getattr(self, key)}, expected a share above 0, up to 100 "
                    f"| --set {key}=...",
                    code=2,
                )

    @classmethod
    def sort(
        cls, names: tuple[str, str], types: tuple[Any, Any], options: Mapping[str, str]
    ) -> dict[str, dict]:
        """The ``options`` by whom they are for: "pair" or one of ``names``. ``types`` are the options that each has.

        ``method.option`` names one; without a method the option must be that of one alone. Raises UserError (code 2).
        """
        sorted_: dict[str, dict] = {"pair": {}, names[0]: {}, names[1]: {}}
        for key, text in options.items():
            owner, dot, option = key.rpartition(".")
            if not dot and key in cls.SHARES:
                sorted_["pair"][key] = parse("+".join(names), key, text, float)
                continue
            owners = [name for name, known in zip(names, types, strict=True) if option in known]
            if (dot and owner not in owners) or not owners:
                known = [*cls.SHARES, *(f"{n}.{k}" for n, t in zip(names, types, strict=True) for k in t)]
                raise unknown(f"option of {'+'.join(names)}", key, known)
            if not dot and len(owners) > 1:
                raise UserError(
                    f"both methods have an option {key} | got --set {key}={text} "
                    f"| --set {names[0]}.{key}=... or --set {names[1]}.{key}=...",
                    code=2,
                )
            sorted_[owner if dot else owners[0]][option] = text
        return sorted_

    @property
    def name(self) -> str:
        return f"{self.before.name}+{self.inside.name}"

    @property
    def position_mode(self) -> str:
        return self.before.position_mode

    def fixed_keep(self, spec: ModelSpec) -> int | None:
        return None

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        stages = [f"pruner.{i}" for i in range(len(self.inside.cuts(spec.decoder)))]
        own = {"pruner": _same(), **dict.fromkeys(stages, _same())}
        own |= self.before.budgets(spec) | self.inside.budgets(spec)
        return {
            stage: tuple((k / (self.outer if stage == "pruner" else self.inner), v) for k, v in points)
            for stage, points in own.items()
        }

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        outer, inner = (min(max(1, round(share * keep)), entered) for share in (self.outer, self.inner))
        before = self.before.leaves(spec, outer, entered)
        return before | self.inside.leaves(spec, inner, before.get("pruner", outer))


def _same() -> Points:
    return (_LEAST, _LEAST), (1.0, 1.0)
