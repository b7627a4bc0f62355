"""Dummies: random weights and a tokenizer of the true sizes, without a download.

A tensor depends on its name and shape alone, not on the order of reading. All tensors differ, since builders
merge equal ones. Scales keep activations near those of trained models.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from foveate.export.checkpoints.directory import Entry, Source, Unread
from foveate.export.checkpoints.tensor_files import Folder
from foveate.export.spec import Weights

__all__ = ["Dummy", "DummyWeights", "byte_tokenizer"]


class Dummy:
    """A Source with random weights. It has the files of ``checkpoint``, or none if that is None."""

    load_format = "dummy"

    def __init__(self, label: str, config: dict[str, Any], checkpoint: Source | None = None) -> None:
        self.label, self.config, self._checkpoint = label, config, checkpoint
        self.revision = checkpoint.revision if checkpoint else "none"
        self.folders: dict[str, Folder] = {}

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the checkpoint, or None."""
        return self._checkpoint.json(name) if self._checkpoint else None

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the checkpoint, or None."""
        return self._checkpoint.file(name) if self._checkpoint else None

    def names(self) -> frozenset[str]:
        """Return no names: a dummy stores nothing."""
        return frozenset()

    def weights(self, entries: Mapping[str, Entry], unread: Unread | None = None) -> Weights:
        """Return random tensors for ``entries``."""
        return DummyWeights(entries)


class DummyWeights:
    """Random Weights in float32: matrices of deviation 1 / sqrt(inputs), norms around 1, small biases.

    Entries that share a stored name get the same values: the values of the first of them.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self._owners: dict[str, str] = {}  # stored name -> the entry that decides values and layout
        for name, entry in self._entries.items():
            owner = next((self._owners[there] for there in entry.names if there in self._owners), name)
            for there in entry.names:
                self._owners.setdefault(there, owner)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> torch.Tensor:
        """Return the random tensor ``name`` in float32."""
        entry = self._entries[name]
        owner = self._owners[entry.names[0]]
        made = _random(owner, self._entries[owner].shape)
        return made if entry.transposed == self._entries[owner].transposed else made.T.contiguous()


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    mean, deviation = _statistics(name, shape)
    return torch.randn(shape, generator=generator).mul_(deviation).add_(mean)


def _statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation."""
    if len(shape) == 1:
        return (1.0, 0.1) if "norm" in name and name.endswith(".weight") else (0.0, 0.02)
    if len(shape) > 3:  # a convolution, [out, in, (frames,) height, width]
        return 0.0, math.prod(shape[1:]) ** -0.5
    table = "embed" in name  # each row of a table is one vector
    return 0.0, shape[1 if table else 0] ** -0.5


def byte_tokenizer(
    size: int, special: Mapping[str, int], *, begin: str | None = None, end: str | None = None
) -> bytes:
    """Make a ``tokenizer.json`` of ``size`` tokens: special ones at their ids, one per byte, and fillers.

    A text has one token per UTF-8 byte. Encoding never makes fillers (`` w1234``), but a dummy model may
    answer with them. ``begin`` and ``end`` are put around a text when it is encoded with special tokens.
    Raises ValueError if ``size`` is below 256 plus the number of special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    taken = set(special.values())
    free = [i for i in range(size) if i not in taken]
    if len(free) < len(alphabet):
        raise ValueError(
            f"a vocabulary of {size} tokens is too small | expected {len(alphabet) + len(taken)} or more"
        )
    fillers = {f"\u0120w{i}": i for i in free[len(alphabet) :]}
    made = Tokenizer(models.BPE(dict(zip(alphabet, free, strict=False)) | fillers | dict(special), []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    if begin:
        single = f"{begin} $A {end}" if end else f"{begin} $A"
        ends = [(token, special[token]) for token in (begin, end) if token]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return json.dumps(json.loads(made.to_str())).encode()
