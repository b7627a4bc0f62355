"""Methods: what a bundle is pruned with. The base classes of everything in ``export/methods``.

A method has a pruner at up to three places: inside the vision encoder (``EncoderMerger``), between it and the
language model (``PreLLMPruner``), and inside the language model (``InLLMPruner``). Most methods are one of
these. ``star`` and a ``CombinedMethod`` have two, and ``none`` has no pruner.

The method's row in README comes from its file. The first line of the docstring is ``name: what it keeps.``,
and the first ``arXiv 1234.56789`` in the docstring is the source.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from foveate.export.pruning import options
from foveate.export.pruning.budgets import Points
from foveate.export.spec import ModelSpec

if TYPE_CHECKING:
    from foveate.export.pruning.encoder_merging import EncoderMerger
    from foveate.export.pruning.in_llm import InLLMPruner
    from foveate.export.pruning.pre_llm import PreLLMPruner

__all__ = ["Method", "PositionMode", "SingleMethod"]

PositionMode = Literal["compact", "keep"]
""""compact" renumbers the position ids of the kept tokens, "keep" leaves them as they were."""


class Method(ABC):
    """A method of a bundle: its pruners, and the share of the user's ``keep`` that each gets."""

    our_reading: ClassVar[bool] = False
    """True when the paper leaves formulas open and has no public code. The module's docstring says what is
    our reading."""

    reads_question: ClassVar[bool] = False
    """True when the selection depends on the prompt's text."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name on the command line."""

    @property
    @abstractmethod
    def position_mode(self) -> PositionMode:
        """Position ids of the tokens that enter the language model."""

    @property
    def encoder_merger(self) -> EncoderMerger | None:
        """The part that works inside the vision encoder. A method with one has no other part."""
        return None

    @property
    def pre_llm(self) -> PreLLMPruner | None:
        """The part that works between the vision encoder and the language model."""
        return None

    @property
    def in_llm(self) -> InLLMPruner | None:
        """The part that works inside the language model."""
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return every option with its value, as in ``bundle.json``.

        Values are numbers, bools, texts, lists of these, or None.
        """

    def fixed_keep(self, spec: ModelSpec) -> int | None:
        """Return the number of tokens per image when the build fixes it; None when run time chooses it."""
        return None if self.encoder_merger is None else self.encoder_merger.rows(spec)

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        """Map the user's ``keep`` to the budget of each stage, as points by the stage's name.

        A stage without points is given ``keep`` itself.
        """
        return {}

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """Return an upper bound of the rows that each stage keeps of an image with ``entered`` rows.

        It serves cost estimates only. A stage that is missing here keeps exactly its budget.
        """
        return {}


@dataclass(frozen=True)
class SingleMethod(Method):
    """A method of its own file. Its fields are its options; bad values raise UserError (code 2)."""

    position_mode: PositionMode = "compact"

    def __post_init__(self) -> None:
        kinds = self.options()
        for field in dataclasses.fields(self):
            options.check(self.name, field, kinds[field.name], getattr(self, field.name))

    @property
    def name(self) -> str:
        """The name of the method's file."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the option names with their types (see ``options.parse``)."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def describe(self) -> dict[str, Any]:
        """Return every option with its value; tuples are lists, as in JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
