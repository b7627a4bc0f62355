"""Watches a decoder layer during calibration: ranges of its inputs and kv cache, and some rows.

Factors (``smoothing``) are tried on these rows.

``LayerWatch`` hooks into a torch layer whose modules have the paths of ``input_groups.GROUPS``. Samples then
pass through the layer, and ``finish`` returns the tensors of ``statistics``. Memory does not grow with the
samples.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveate.calib.input_groups import GROUPS, Group
from foveate.calib.smoothing import awq, smoothquant

__all__ = ["ROWS", "InputWatch", "LayerWatch"]

ROWS = 256
"""Number of rows of each input that are kept, from all samples together."""

_SHIFT = 19  # dropped low bits of a float32: |x| are counted by exponent and 4 bits of the mantissa
# The clips that are tried, as shares of the peak, down to 1/256.
_CLIPS = 2.0 ** (-torch.arange(64, dtype=torch.float64) / 8)


class InputWatch:
    """Statistics of one input: maxima and means per channel, counts by size, and some rows.

    ``width`` is the number of channels. ``each`` rows of every prompt are kept, at even distances from the
    first row on, which has the largest activations of trained models (Sun et al., arXiv 2402.17762).
    """

    def __init__(self, each: int, width: int) -> None:
        self._each, self._seen = each, 0
        self._rows: list[Tensor] = []
        self._peak = torch.zeros(width)
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._counts = torch.zeros(1 << 31 - _SHIFT, dtype=torch.int64)

    def see(self, x: Tensor) -> None:
        """Count the rows ``x [n, in]`` of one prompt, float32."""
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
        """The largest |x| of each channel, float32 [in]."""
        return self._peak

    @property
    def mean_abs(self) -> Tensor:
        """The mean |x| of each channel, float32 [in]."""
        return (self._sum / self._seen).float()

    @property
    def rows(self) -> Tensor:
        """The rows that were kept, [m, in]."""
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
    """Hooks on a decoder layer, through which ``prompts`` prompts will pass."""

    def __init__(self, layer: nn.Module, prompts: int) -> None:
        each = max(2, -(-ROWS // prompts))
        self._layer = layer
        self._inputs = {group.name: InputWatch(each, len(self._weight(group.name))) for group in GROUPS}
        self._cache: list[Tensor] = []
        self._hooks = [
            layer.get_submodule(name).register_forward_pre_hook(functools.partial(_show, watch))
            for name, watch in self._inputs.items()
        ]

    def close(self) -> None:
        """Remove the hooks."""
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
                weights = [self._weight(path) for path in group.reads]
                found |= {f"{name}.{kind}": f.numpy() for kind, f in _factors(watch, weights).items()}
        return found

    def _foldable(self, group: Group) -> bool:
        """Return True if the maker has as many outputs as the matrices have inputs: factors can be folded.

        With grouped-query attention o has more inputs than v has outputs, since query heads share values.
        """
        return self._weight(group.maker).shape[-1] == self._weight(group.name).shape[0]

    def _weight(self, path: str) -> Tensor:
        """Return the weight of the module ``path``: [in, out], or [channels] of a norm."""
        return self._layer.get_parameter(f"{path}.weight")


def _factors(watch: InputWatch, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    scale = awq.factors(watch.rows, watch.mean_abs, weights)
    found = {} if scale is None else {"awq": scale}
    return found | {"smoothquant": smoothquant.factors(watch.absmax, weights)}


def _show(watch: InputWatch, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    watch.see(inputs[0].flatten(0, -2))
