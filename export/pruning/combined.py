"""A pair of methods: a pre-LLM pruner and an in-LLM pruner in one bundle, e.g. ``vscan+pyramiddrop``.

Each is given a share of the user's ``keep``. The default shares are those that VScan was published with
(arXiv 2505.22654): 1.5 ``keep`` tokens enter the language model and 0.5 ``keep`` remain after its middle. Its
layers then hold ``keep`` tokens on average.
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

_LEAST = 2.0**-20  # smaller than the share of one token in any image


@dataclass(frozen=True)
class Pair:
    """A pre-LLM pruner ``before`` and an in-LLM pruner ``inside``, and the factors of the user's keep.

    ``before`` is given ``outer * keep``, at most the number of tokens; ``inside`` is given ``inner * keep``.
    Raises UserError (code 2) for methods of another kind and for factors that are not in (0, 100].
    """

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
                f"{name} is no pair | expected a pre-LLM pruner and an in-LLM pruner, in this order "
                "| for example vscan+pyramiddrop",
                code=2,
            )
        for key in self.SHARES:
            if not 0 < getattr(self, key) <= 100:
                raise UserError(
                    f"{name}: bad value for {key} | got {getattr(self, key)}, "
                    f"expected a share above 0, up to 100 | --set {key}=...",
                    code=2,
                )

    @classmethod
    def sort(
        cls, names: tuple[str, str], types: tuple[Any, Any], options: Mapping[str, str]
    ) -> dict[str, dict]:
        """Sort ``options`` by owner: the pair (key "pair") or one of the two methods in ``names``.

        ``types`` holds the options of each method. A key may be written ``method.option``. Without a method's
        name the option must belong to exactly one of the two. Raises UserError (code 2) for unknown or
        ambiguous keys.
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
