"""The largest values that a model computes, by graph and layer. They tell which graphs float16 can hold.

Reference answers are recorded in float32 (``run``). While a module runs, ``Ranges.watch`` notes the
largest absolute value of everything that a float16 graph would have to hold: the inputs and outputs of every
module (the residual stream, the products of an MLP, norms), every product of two matrices, and the scores of
attention. Sums inside an operator, such as the squares of a norm, are left out, since engines compute them in
float32.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foveate.engines.errors import UserError
from foveate.runtime.bundle.manifest import LayerPeak
from foveate.runtime.overflow import FLOAT16_MAX

__all__ = ["MARGIN", "Peak", "Ranges"]

MARGIN = 2.0
"""A graph counts as too wide for float16 above FLOAT16_MAX / MARGIN, since other prompts may reach further
than the recorded one."""

_LAYER = re.compile(r"(?:^|\.)\w+\.(\d+)(?:\.|$)")
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm}


@dataclass(frozen=True)
class Peak:
    """The largest absolute value at one place of ``graph``.

    ``layer`` is None outside the numbered layers. ``edge`` is True for places that keep their dtype when the
    graph is widened to float32: inputs, outputs, kv caches, and attention over a cache.
    """

    graph: str
    layer: int | None
    at: str
    value: float
    edge: bool

    def __str__(self) -> str:
        """Return the place in words, such as ``layer 3 of llm (mlp.down_proj, output)``."""
        where = self.graph if self.layer is None else f"layer {self.layer} of {self.graph}"
        return f"{where} ({self.at})"

    @property
    def too_wide(self) -> bool:
        """True if float16 may not hold the value. True for NaN."""
        return not self.value * MARGIN <= FLOAT16_MAX


class Ranges:
    """The largest value seen so far for every graph, layer and kind of place (``Peak.edge``).

    Several recordings may share one object. It then holds the larger value of each place.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, int | None, bool], Peak] = {}
        self._too_wide: dict[tuple[str, bool], Peak] = {}

    def see(
        self, graph: str, at: str, value: Tensor, *, layer: int | None = None, edge: bool = False
    ) -> None:
        """Note ``value``. Raises UserError if it holds NaN or infinity, so the first such place is named."""
        if not value.is_floating_point() or not value.numel():
            return
        largest = float(value.abs().amax())  # NaN if there is one
        peak = Peak(graph, layer, at, largest, edge)
        if not math.isfinite(largest):
            kind = "NaN" if math.isnan(largest) else "infinity"
            raise UserError(
                f"the checkpoint computes {kind} in float32 in {peak} "
                "| expected finite numbers for a recorded prompt "
                "| its weights are damaged, or are not those of this model: load it with transformers, "
                "or take another copy"
            )
        if peak.too_wide:
            self._too_wide.setdefault((graph, edge), peak)
        known = self._found.get((graph, layer, edge))
        if known is None or largest > known.value:
            self._found[graph, layer, edge] = peak

    @contextlib.contextmanager
    def watch(
        self, graph: str, module: nn.Module, *, layer: int | None = None, cached: bool = False
    ) -> Iterator[None]:
        """Note everything that ``module`` computes inside the block.

        ``layer`` is the number of the layer; None takes it from the paths of the submodules. ``cached``: the
        module's attention reads a kv cache, which keeps its dtype.
        """
        path: list[str] = [""]

        def see(what: str, value: Any, edge: bool = False) -> None:
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Tensor):
                    number, place = (layer, path[-1]) if layer is not None else _split(path[-1])
                    self.see(graph, f"{place}, {what}" if place else what, each, layer=number, edge=edge)

        def enter(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
                path.append(name)
                see("input", inputs)

            return hook

        def leave(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            see("output", tuple(output.values()) if isinstance(output, dict) else output)
            path.pop()

        handles = []
        for name, part in module.named_modules():
            handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave)]
        try:
            with _Watch(see, cached):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def first_too_wide(self, graph: str, *, edge: bool) -> Peak | None:
        """Return the first place at the edge of ``graph``, or inside it, that float16 may not hold.

        None without one.
        """
        return self._too_wide.get((graph, edge))

    def by_graph(self) -> dict[str, tuple[LayerPeak, ...]]:
        """Return the entry ``ranges`` of bundle.json: the largest values of each graph, layers in order."""
        peaks = sorted(self._found.values(), key=lambda p: (p.graph, p.layer is None, p.layer or 0, p.edge))
        return {
            graph: tuple(LayerPeak(p.layer, p.at, float(f"{p.value:.4g}"), p.edge) for p in found)
            for graph, found in groupby(peaks, key=lambda p: p.graph)
        }


class _Watch(TorchFunctionMode):
    """Report matrix products and attention scores to ``see``."""

    def __init__(self, see: Callable[..., None], cached: bool) -> None:
        super().__init__()
        self._see, self._cached = see, cached

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            self._see("product", answer)
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            self._see("attention scores", _largest_score(query, key), self._cached)
            if self._cached:
                self._see("queries, keys or values", (query, key, value), True)
        return answer


def _largest_score(query: Tensor, key: Tensor) -> Tensor:
    """Return the largest scaled score of ``query [B,H,T,D]`` with ``key [B,Hkv,S,D]``: ``[B,H]``.

    Only one head's scores are in memory at a time.
    """
    group, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    rows = [
        ((query[:, head] * scale) @ key[:, head // group].transpose(-2, -1)).abs().amax((-2, -1))
        for head in range(query.shape[1])
    ]
    return torch.stack(rows, dim=1)


def _split(path: str) -> tuple[int | None, str]:
    """Split a module's path into the number of its layer and the path inside the layer."""
    found = _LAYER.search(path)
    return (int(found[1]), path[found.end() :]) if found else (None, path)
