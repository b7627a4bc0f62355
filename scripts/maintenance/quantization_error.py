"""Measure the error of each quantization scheme in a random decoder layer of full size with planted outliers.

Trained models have a few channels whose activations are tens of times as large as the others. Random weights
have none, so outliers are planted in ``--channels`` channels of the layer's input, and in as many of the
inputs of o and down. Statistics and factors come from four times ``--rows`` rows, errors from ``--rows``
other rows. Weights are rounded by the schemes of ``calib/schemes``, activations as the engines do it. The
error is |y' - y| / |y| in Frobenius norms, where y is what the layer adds to its input. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from foveate.calib import schemes
from foveate.calib.activation_watch import LayerWatch
from foveate.calib.input_groups import GROUPS
from foveate.calib.schemes.quantized import Form
from foveate.calib.schemes.scheme import Scheme
from foveate.calib.smoothing.fold import Smoothed
from foveate.calib.statistics import InputStatistics, Statistics
from foveate.export.checkpoints.module_weights import fill
from foveate.export.networks.decoder import Decoder, DecoderLayer, rope_tables
from foveate.export.spec import DecoderSpec

PREFIX = "llm.layers.0."
AT_RUN_TIME, FIXED = Form("float32", True, False), Form("float16", False, False)

# name -> scheme of the weights, factors in them, and how the graph rounds activations, if it does
VARIANTS: dict[str, tuple[str, str | None, Form | None]] = {
    "int4, to nearest": ("int4", None, None),
    "int4, AWQ": ("int4", "awq", None),
    "int8, dynamic": ("int8", None, AT_RUN_TIME),
    "int8, dynamic, SmoothQuant": ("int8", "smoothquant", AT_RUN_TIME),
    "int8, static": ("int8", None, FIXED),
    "int8, static, SmoothQuant": ("int8", "smoothquant", FIXED),
    "fp8": ("fp8", None, FIXED),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096, help="Hidden size (default: 4096).")
    parser.add_argument(
        "--intermediate", type=int, default=11008, help="Size of the feed-forward (default: 11008)."
    )
    parser.add_argument("--heads", type=int, default=32, help="Number of heads (default: 32).")
    parser.add_argument("--rows", type=int, default=256, help="Number of rows to measure on (default: 256).")
    parser.add_argument("--channels", type=int, default=6, help="Number of outlier channels (default: 6).")
    parser.add_argument(
        "--factor",
        type=float,
        nargs="+",
        default=[1, 30, 100],
        help="Sizes of the outliers relative to other channels (default: 1 30 100).",
    )
    args = parser.parse_args()
    spec = DecoderSpec(
        args.hidden, args.intermediate, 1, args.heads, args.heads, args.hidden // args.heads,
        vocab_size=2, rms_norm_eps=1e-5, rope_theta=1e4, max_positions=4 * args.rows, tied=False,
    )  # fmt: skip
    found = {f"{factor:g}": errors(spec, args.rows, args.channels, factor) for factor in args.factor}
    print(f"{'outliers are so many times as large':<40}" + "".join(f"{f:>10}" for f in found))
    for name in VARIANTS:
        print(f"{name:<40}" + "".join(f"{each[name] * 100:9.2f}%" for each in found.values()))
    print(json.dumps({"arguments": vars(args), "errors": found}))
    return 0


@torch.inference_mode()
def errors(spec: DecoderSpec, rows: int, channels: int, factor: float) -> dict[str, float]:
    """Return the relative error of every variant."""
    generator = torch.Generator().manual_seed(0)
    weights, loud = planted(spec, channels, factor, generator)
    seen, asked = (
        torch.randn(1, length, spec.hidden_size, generator=generator) * loud for length in (4 * rows, rows)
    )
    layer = filled(spec, weights)
    with contextlib.closing(LayerWatch(layer, 1)) as watch:
        watch.see_cache(*run(layer, spec, seen)[1:])
        statistics = Statistics(watch.finish(PREFIX), {})
    exact = run(layer, spec, asked)[0] - asked
    found = {}
    for name, (scheme, kind, form) in VARIANTS.items():
        source = weights if kind is None else Smoothed(weights, statistics.factors(kind))
        ranges = statistics if kind is None else statistics.folded(kind)
        layer = filled(spec, Rounded(source, schemes.load(scheme), narrow=form is AT_RUN_TIME))
        with rounded_inputs(layer, ranges, scheme, form):
            y = run(layer, spec, asked)[0] - asked
        found[name] = float((y - exact).norm() / exact.norm())
    return found


class Tensors:
    """``Weights`` in memory."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> Tensor:
        return self._values[name]


class Rounded:
    """``weights`` with matrices rounded by a scheme, ``narrow`` as for dynamic int8."""

    def __init__(self, weights: Tensors | Smoothed, scheme: Scheme, narrow: bool) -> None:
        self._weights, self._scheme, self._narrow = weights, scheme, narrow

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def get(self, name: str) -> Tensor:
        value = self._weights.get(name)
        if value.ndim == 1:
            return value
        found = self._scheme.quantize(value.float().numpy())
        return torch.from_numpy((found.narrow() if self._narrow else found).dequantize())


def planted(
    spec: DecoderSpec, channels: int, factor: float, generator: torch.Generator
) -> tuple[Tensors, Tensor]:
    """Return a layer's random weights, and the factors [hidden] of its input's channels.

    Columns of v and up are multiplied too, which gives outliers in the inputs of o and down.
    """
    with torch.device("meta"):
        layer = DecoderLayer(spec)
    values = {}
    for path, value in layer.named_parameters():
        made = torch.randn(value.shape, generator=generator)
        values[f"{PREFIX}{path}"] = made / value.shape[0] ** 0.5 if value.ndim == 2 else 1 + 0.1 * made

    def loud(width: int) -> Tensor:
        scale = torch.ones(width)
        scale[torch.randperm(width, generator=generator)[:channels]] = factor
        return scale

    for path in ("self_attn.v_proj", "mlp.up_proj"):
        weight = values[f"{PREFIX}{path}.weight"]
        weight *= loud(weight.shape[1])
    return Tensors(values), loud(spec.hidden_size)


def filled(spec: DecoderSpec, weights: Tensors | Smoothed | Rounded) -> nn.Module:
    with torch.device("meta"):
        layer = DecoderLayer(spec)
    return fill(layer, weights, PREFIX)


def run(layer: nn.Module, spec: DecoderSpec, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    length = rows.shape[1]
    start = torch.zeros(1, dtype=torch.int64)
    empty = torch.zeros(1, spec.num_kv_heads, length, spec.head_dim)
    rope = *rope_tables(spec), torch.arange(length)[None]
    return layer(rows, rope, start, Decoder.causal_mask(length, length, start), (empty, empty))


@contextlib.contextmanager
def rounded_inputs(
    layer: nn.Module, statistics: Statistics, scheme: str, form: Form | None
) -> Iterator[None]:
    """Let the layer's matrix products read rounded inputs, each with its own range."""
    hooks = []
    for path in (path for group in GROUPS for path in group.reads):
        seen = statistics.inputs(f"{PREFIX}{path}.weight")

        def hook(module: nn.Module, inputs: tuple[Tensor], seen: InputStatistics = seen) -> tuple[Tensor]:
            return (inputs[0] if form is None else schemes.load(scheme).rounded(inputs[0], form, seen),)

        hooks.append(layer.get_submodule(path).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
