"""The precision of a model's parts.

It is the user's choice, the scheme of each weight, and the dialects that allow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from foveate.calib import schemes
from foveate.engines.errors import UserError, unknown
from foveate.export import lowering
from foveate.runtime.bundle.manifest import PrecisionInfo

__all__ = ["COMPUTED", "SAFE", "Precision", "choices", "dialects"]

COMPUTED = ("fp32", "fp16")
"""Precisions without quantization. The dialect decides in which of the two dtypes its graphs compute."""
SAFE = "compute dtype"
"""Entry in the manifest for a part without a scheme of its own."""

_DECODER = r"llm\.layers\."


def choices() -> tuple[str, ...]:
    """Return the names that ``--precision`` takes."""
    return *COMPUTED, *schemes.names()


@dataclass(frozen=True)
class Precision:
    """The precision of each part of a model. Raises UserError for an unknown name.

    * ``decoder``: precision of the language model's layers.
    * ``head``: scheme of lm_head. None, the safe choice, is the dtype of the graph.
    * ``vision``: scheme of the matrices in the vision encoder's layers, or None as for ``head``.
    * ``prefill``: "int8" adds a second form of the decoder's layers, which computes prompts in dialects that
      find ranges at run time. None computes prompts with the decoder's precision.
    """

    decoder: str = "int4"
    head: str | None = None
    vision: str | None = None
    prefill: str | None = None

    def __post_init__(self) -> None:
        if self.decoder not in choices():
            raise unknown("precision", self.decoder, choices())
        for scheme in (self.head, self.vision):
            if scheme is not None:
                schemes.load(scheme)
        if self.prefill not in (None, "int8"):
            raise unknown("precision of prefill", self.prefill, ["int8"])

    @classmethod
    def of(cls, given: Precision | str) -> Precision:
        """Return the precision, or the one whose decoder has the given precision."""
        return given if isinstance(given, Precision) else cls(given)

    @property
    def schemes(self) -> list[str]:
        """The schemes in use, one for each quantized part."""
        return [part for part in (self.decoder, self.head, self.vision) if part and part not in COMPUTED]

    def describe(self) -> PrecisionInfo:
        """Return the entry ``precision`` of bundle.json."""
        return PrecisionInfo(self.decoder, self.head or SAFE, self.vision or SAFE, self.prefill)

    @property
    def prefilling(self) -> Precision:
        """The precision of the graphs that compute prompts."""
        return replace(self, decoder=self.prefill or self.decoder, prefill=None)

    def choose(self, packed: Collection[str] = ()) -> Callable[[str, tuple[int, ...]], str | None]:
        """Return a function that maps a weight's name and shape to its scheme.

        It maps to None where the weight has the graph's dtype.

        ``packed`` are the weights that the checkpoint holds in int4. They stay as they are, and other weights
        of their layers are not quantized. Raises UserError if they would have to be quantized again. The
        function raises UserError for a matrix of the head or vision encoder whose shape does not fit the
        scheme.
        """
        if packed and self.decoder not in ("int4", *COMPUTED):
            raise UserError(
                f"the checkpoint is quantized already | its weights are int4, got --precision {self.decoder} "
                "| take --precision int4, which reads them as they are, or the unquantized checkpoint"
            )
        parts = {
            _DECODER: None if packed else self.decoder,
            r"llm\.lm_head\.": self.head,
            r"vision_encoder\..*\.\d+\.": self.vision,  # its numbered layers, whatever a family calls them
        }

        def choose(name: str, shape: tuple[int, ...]) -> str | None:
            if name in packed:
                return "int4" if self.decoder == "int4" else None
            part, scheme = next((each for each in parts.items() if re.match(each[0], name)), (None, None))
            if scheme not in self.schemes or len(shape) != 2:
                return None
            if schemes.load(scheme).takes(*shape):
                return scheme
            if part == _DECODER:  # a model may have some matrices that do not fit
                return None
            raise UserError(
                f"{name} cannot be in {scheme} | it has {shape[0]} inputs, expected a multiple of 32 "
                "| take int8, or leave that part in the dtype of its graph"
            )

        return choose

    def refusal(self, dialect: str, calibrated: bool) -> str | None:
        """Return why this precision is impossible in ``dialect`` as "reason | what to do".

        None if it is possible.
        """
        target = lowering.load(dialect)
        for scheme in (self.decoder, *self.schemes):
            if scheme not in target.dtypes:
                able = ", ".join(kind for kind in choices() if kind in target.dtypes)
                return f"{target.refuses[scheme]} | choose one of {able}, or another dialect"
        rounds = [name for name in self.schemes if schemes.load(name).rounds_activations]
        if rounds and not target.dynamic and not calibrated:
            return (
                f"{rounds[0]} needs ranges of the activations there | collect them with --calibrate, or give "
                "--statistics"
            )
        if rounds and target.dynamic and target.dtypes[self.decoder] != "float32":
            dtype = target.dtypes[self.decoder]
            return f"{rounds[0]} is computed in float32 there, not in {dtype} | use --precision fp32"
        return None


def dialects(
    precision: Precision, asked: list[str] | None, calibrated: bool, sorts: int = 0
) -> tuple[list[str], dict[str, str]]:
    """Return the dialects of the bundle, and for each dialect left out the reason.

    ``sorts`` is the largest number of tokens that a pruner sorts. Raises UserError (code 2) when a dialect
    that was ``asked`` for is impossible, or when none is left.
    """
    refusals = {
        name: precision.refusal(name, calibrated) or _too_many(name, sorts)
        for name in asked or lowering.names()
    }
    left_out = {name: reason for name, reason in refusals.items() if reason}
    found = [name for name in refusals if name not in left_out]
    if left_out and (asked or not found):
        name, reason = next(iter(left_out.items()))
        raise UserError(f"this bundle cannot have the dialect {name} | {reason}", code=2)
    if precision.prefill and not any(lowering.load(name).dynamic for name in found):
        able = [name for name in lowering.names() if lowering.load(name).dynamic]
        raise UserError(
            f"--prefill-precision {precision.prefill} has no dialect | it got {', '.join(found)}, "
            f"expected {', '.join(able)}, where ranges are found at run time "
            "| leave it out, or add that dialect",
            code=2,
        )
    return found, left_out


def _too_many(name: str, sorts: int) -> str | None:
    most = lowering.load(name).largest_sort
    if most is None or sorts <= most:
        return None
    return (
        f"an image may have {sorts} tokens, its engines sort at most {most} "
        "| build with a smaller --max-pixels"
    )
