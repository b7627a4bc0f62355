"""The tensors of a torch module: which of a checkpoint's they are, and how a module is filled with them.

``entries`` and ``language_entries`` list the tensors that a module needs. A ``Source`` (see ``directory``)
reads them, and ``fill`` puts them into the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from foveate.export.checkpoints.directory import Entry
from foveate.export.networks.decoder import Decoder, Linear, rope_tables
from foveate.export.spec import Weights

__all__ = ["entries", "fill", "language_entries", "under"]


def entries(
    module: nn.Module, prefix: str, renames: Iterable[tuple[str, tuple[str, ...]]]
) -> dict[str, Entry]:
    """Return an Entry for each parameter of ``module``, by ``prefix`` + path.

    ``renames`` maps the start of a path to its possible starts in a checkpoint; the first pair that fits is
    used. Checkpoints store ``Linear`` matrices transposed.
    """
    linear = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, Linear)}
    found = {}
    for path, parameter in module.named_parameters():
        start, stored = next((ours, theirs) for ours, theirs in renames if path.startswith(ours))
        names = tuple(there + path.removeprefix(start) for there in stored)
        found[prefix + path] = Entry(tuple(parameter.shape), names, path in linear)
    return found


def language_entries(decoder: Decoder, starts: tuple[str, ...], head: tuple[str, ...]) -> dict[str, Entry]:
    """Return the Entries of a language model: embedding table, ``decoder``'s layers, and head.

    ``starts`` are the possible prefixes of table and layers in a checkpoint, ``head`` those of the head. Tied
    weights work as in transformers 5: if only one of table and head is stored, it serves as both; if both are
    stored, each is used as it is, even if they differ.
    """
    spec, table, own = decoder.spec, under(starts, "embed_tokens.weight"), under(head, "weight")
    found = {"embed_tokens": Entry((spec.vocab_size, spec.hidden_size), table + (own if spec.tied else ()))}
    found |= entries(decoder, "llm.", [("lm_head.", head), ("", starts)])
    names = own + (table if spec.tied else ())
    found["llm.lm_head.weight"] = Entry((spec.hidden_size, spec.vocab_size), names, transposed=True)
    return found


def under(starts: tuple[str, ...], path: str) -> tuple[str, ...]:
    """Return ``path`` behind each of ``starts``: its possible names in a checkpoint."""
    return tuple(start + path for start in starts)


def fill(module: nn.Module, weights: Weights, weight: str | Callable[[str], str]) -> nn.Module:
    """Fill ``module``, built on the meta device, in place with float32 values on the CPU, and return it.

    ``weight`` is the prefix of the parameters' names in ``weights``, or a function from a parameter's path to
    its name. Rotary tables are computed, since no checkpoint holds them.
    """
    name_of = weight.__add__ if isinstance(weight, str) else weight
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            known = name_of(f"{path}.{name}" if path else name)
            value = weights.get(known).to(torch.float32)
            assert value.shape == parameter.shape, f"{known}: {value.shape} is not {parameter.shape}"
            setattr(part, name, nn.Parameter(value, requires_grad=False))
        if hasattr(part, "rope_cos"):
            part.rope_cos, part.rope_sin = rope_tables(part.spec)
    return module
