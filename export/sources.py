"""Where a checkpoint comes from, and how its tensors are read: one at a time, checked before any long work.

A source has ``label``, ``revision``, ``load_format`` and ``config`` (its ``config.json``), gives its other files by
name (``json``, ``file``) and its tensors by ``weights``. ``Directory`` reads a checkpoint on disk, ``download`` brings
one from the Hugging Face hub, ``dummy.Dummy`` needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from foveate.export.decoder import Decoder, Linear, rope_tables
from foveate.export.parts import Weights

__all__ = ["Entry", "Source", "entries", "fill"]


@dataclass(frozen=True)
class Entry:
    """A tensor that a model needs: its shape here, its possible names in a checkpoint, and whether it is stored
    the other way round there."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    transposed: bool = False


class Source(Protocol):
    label: str
    revision: str
    load_format: str
    config: dict[str, Any]

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the checkpoint; None where it has none."""
        ...

    def file(self, name: str) -> Path | None:
        """The path of a file of the checkpoint; None where it has none."""
        ...

    def weights(self, entries: Mapping[str, Entry]) -> Weights:
        """The tensors that ``entries`` name. Raises UserError when one is missing or has another shape."""
        ...


def entries(
    module: nn.Module, prefix: str, renames: Iterable[tuple[str, tuple[str, ...]]]
) -> dict[str, Entry]:
    """What ``module`` needs, as ``prefix`` + path. ``renames`` gives, for the start of a path, the possible starts
    in a checkpoint; the first that fits counts. ``Linear`` matrices are stored transposed there."""
    linear = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, Linear)}
    found = {}
    for path, parameter in module.named_parameters():
        start, stored = next((a, b) for a, b in renames if path.startswith(a))
        names = tuple(there + path.removeprefix(start) for there in stored)
        found[prefix + path] = Entry(tuple(parameter.shape), names, path in linear)
    return found


def fill(module: nn.Module, weights: Weights, prefix: str) -> nn.Module:
    """Give ``module``, built on the meta device, its values in float32 on the CPU, in place; returns it.

    ``prefix`` + path are the names in ``weights``. Rotary tables, which no checkpoint holds, are computed.
    """
    for path, part in module.named_modules():
        start = f"{prefix}{path}." if path else prefix
        for name, parameter in part.named_parameters(recurse=False):
            value = weights.get(start + name).to(torch.float32)
            assert value.shape == parameter.shape, f"{start}{name}: {value.shape} is not {parameter.shape}"
            setattr(part, name, nn.Parameter(value, requires_grad=False))
        if isinstance(part, Decoder):
            part.rope_cos, part.rope_sin = rope_tables(part.spec)
    return module
