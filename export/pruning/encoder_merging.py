"""Encoder mergers: methods that merge patches inside the vision encoder's layers.

The vision encoder then returns the rows that are left, and there is no pruner graph. The shapes of its layers
follow from the number of rows, so that number is fixed when a bundle is built.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from foveate.export.pruning.method import SingleMethod
from foveate.export.spec import ModelSpec, StartMerging

__all__ = ["EncoderMerger"]


@dataclass(frozen=True)
class EncoderMerger(SingleMethod):
    """Base class of methods that merge patches inside the vision encoder."""

    merges: ClassVar[bool] = True

    @property
    def encoder_merger(self) -> EncoderMerger:
        """The method itself."""
        return self

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return ``layers``: a family that offers it lets methods work in its vision encoder's layers."""
        return ("layers",)

    @abstractmethod
    def rows(self, spec: ModelSpec) -> int:
        """Return the number of rows per image that are left behind the last layer."""

    @abstractmethod
    def merging(self, spec: ModelSpec) -> StartMerging:
        """Return what starts the method's work on a batch of images, layer by layer (``spec.Merging``)."""
