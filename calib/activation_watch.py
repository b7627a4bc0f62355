"""Watch a decoder layer during calibration: ranges of its inputs and kv cache, and rows on which factors are
tried.

``LayerWatch`` hooks into a torch layer whose modules have the paths of ``fold.GROUPS``. Samples then pass
through the layer, and ``finish`` returns the tensors of ``statistics``. Memory does not grow with the
samples.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveate.calib.smoothing import awq, smoothquant
from foveate.calib.smoothing.fold import GROUPS, Group

__all__ = ["ROWS", "InputWatch", "LayerWatch"]

ROWS = 256
"""Number of rows of each input that are kept, from all samples together."""

_SHIFT = 19  # dropped low bits of a float32: |x| are counted by exponent and 4 bits of the mantissa
_CLIPS = 2.0 ** (
    -torch.arange(64, dtype=torch.float64) / 8
)  # tried clips as shares of the peak, down to 1/256


class InputWatch:
    """Collects maxima and means per channel, counts by size, and ``each`` rows of every prompt, from rows [n,
    in].

    The rows are at even distances, from the first row on, which has the largest activations of trained models
    (Sun et al., arXiv 2402.17762).
    """

    def __init__(self, each: int) -> None:
        self._each, self._seen, self._rows = each, 0, []
        self._peak: Tensor | None = None
        self._sum: Tensor | None = None
        self._counts = torch.zeros(1 << 31 - _SHIFT, dtype=torch.int64)

    def see(self, x: Tensor) -> None:
        if self._peak is None:
            self._peak, self._sum = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], dtype=torch.float64)
        size = x.abs()
        self._peak = torch.maximum(self._peak, size.amax(0))
        self._sum += size.sum(0, dtype=torch.float64)
        self._seen += len(x)
        bins = (size.contiguous().view(torch.int32) >> _SHIFT).flatten()
        self._counts += torch.bincount(bins, minlength=len(self._counts))
        picked = torch.linspace(0, len(x) - 1, min(self._each, len(x))).round().long()
        self._rows.append(x[picked])

    @property
    def absmax(self) -> Tensor:
        return self._peak

    @property
    def mean_abs(self) -> Tensor:
        return (self._sum / self._seen).float()

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._rows)

    def clip(self) -> float:
        """Return the clip with the least mean squared error of symmetric int8. Sizes are known to 1/16.

        The first token has a few activations that are hundreds of times larger than others. Squared errors
        give them their weight. A percentile would cut them off, and with them the attention that depends on
        them.
        """
        peak = float(self._peak.max())
        if peak == 0:
            return 1.0
        bins = torch.arange(len(self._counts), dtype=torch.int32)
        size = ((bins << _SHIFT) + (1 << _SHIFT - 1)).view(torch.float32).double()  # the middle of each
        seen = self._counts > 0
        counts, size = self._counts[seen], size[seen]
        clips = peak * _CLIPS[:, None]
        inside = torch.minimum((clips / 127) ** 2 / 12, size**2)
        error = torch.where(size > clips, (size - clips) ** 2, inside)
        return float(clips[(error * counts).sum(1).argmin(), 0])

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the statistics of the matrix ``name``, by the names in ``statistics``."""
        return {
            f"{name}.absmax": self.absmax.numpy(),
            f"{name}.mean_abs": self.mean_abs.numpy(),
            f"{name}.range": np.array(self.clip(), np.float32),
        }


class LayerWatch:
    """Hooks on a decoder layer, through which ``prompts`` prompts will pass. ``close`` removes the hooks."""

    def __init__(self, layer: nn.Module, prompts: int) -> None:
        each = max(2, -(-ROWS // prompts))
        self._layer = layer
        self._inputs = {group.name: InputWatch(each) for group in GROUPS}
        self._cache: list[Tensor] = []
        self._hooks = [
            layer.get_submodule(name).register_forward_pre_hook(functools.partial(_show, watch))
            for name, watch in self._inputs.items()
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def see_cache(self, keys: Tensor, values: Tensor) -> None:
        """Note the largest values of the kv cache; ``keys`` and ``values`` are ``[1, Hkv, T, Dh]``."""
        peaks = [each[0].abs().amax(1) for each in (keys, values)]
        before = self._cache or peaks
        self._cache = [torch.maximum(old, new) for old, new in zip(before, peaks, strict=True)]

    def finish(self, prefix: str, pinned: Container[str] = ()) -> dict[str, np.ndarray]:
        """Return the tensors of the layer, by names that begin with ``prefix``.

        Modules whose weights are ``pinned`` get no factors, because a pruner also reads their outputs.
        """
        found: dict[str, np.ndarray] = {}
        for each, peak in zip("kv", self._cache, strict=True):
            found[f"{prefix}self_attn.{each}_proj.weight.cache"] = peak.numpy()
        for group in GROUPS:
            watch, name = self._inputs[group.name], f"{prefix}{group.name}.weight"
            found |= watch.tensors(name)
            if self._foldable(group) and f"{prefix}{group.maker}.weight" not in pinned:
                weights = [self._layer.get_submodule(path).weight for path in group.reads]
                found |= {f"{name}.{kind}": f.numpy() for kind, f in _factors(watch, weights).items()}
        return found

    def _foldable(self, group: Group) -> bool:
        """Return True if the group's factors can be folded: as many outputs of the maker as inputs of the
        matrices.

        With grouped-query attention o has more inputs than v has outputs, since query heads share values.
        """
        made, reads = (self._layer.get_submodule(path).weight for path in (group.maker, group.name))
        return made.shape[-1] == reads.shape[0]


def _factors(watch: InputWatch, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    scale = awq.factors(watch.rows, watch.mean_abs, weights)
    found = {} if scale is None else {"awq": scale}
    return found | {"smoothquant": smoothquant.factors(watch.absmax, weights)}


def _show(watch: InputWatch, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    watch.see(inputs[0].flatten(0, -2))
