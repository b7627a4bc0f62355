"""A roofline model with fitted efficiencies: the time that each stage of an answer takes on a device.

A stage bound by arithmetic (vision, prune, prefill) takes FLOPs / (rate * efficiency) and a constant per
layer. A stage bound by memory (decode) takes bytes / (bandwidth * efficiency) and a constant per layer.
``efficiency.json`` has the two numbers of each stage. ``scripts/fit_plan.py`` fits them to published
measurements of Orins (``measured.json``), and a test checks that they still agree.

The efficiencies are those of TensorRT-Edge-LLM's kernels. Engines that plain TensorRT builds may be slower,
above all with int4 weights. Nobody has published times of the prune stage. It is counted as one similarity
between every two visual tokens, at prefill's efficiency. This is a lower bound for methods that select in a
loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from foveate.engines.errors import UserError
from foveate.jetson.device.devices import Device
from foveate.jetson.planner.model_sizes import Model
from foveate.runtime.measuring import costs

__all__ = [
    "ERRORS",
    "Efficiency",
    "Times",
    "decode_work",
    "fitted",
    "prefill_work",
    "rate",
    "spread",
    "times",
    "vision_work",
]

ERRORS = {"vision": 0.097, "prefill": 0.102, "decode": 0.145}
"""Largest error of each stage, as a share of the measured time, on a device that was left out of the fit."""


@dataclass(frozen=True)
class Efficiency:
    """The ``share`` of the peak that a stage reaches, and the seconds that it takes ``per_layer`` besides."""

    share: float
    per_layer: float

    def seconds(self, ideal: float, layers: int) -> float:
        """Return the time of a stage that takes ``ideal`` seconds at the peak and has ``layers`` layers."""
        return ideal / self.share + self.per_layer * layers


@dataclass(frozen=True)
class Times:
    """Estimated seconds per stage, for one image. Preprocessing on the host is not included."""

    vision: float
    prune: float
    prefill: float
    per_token: float

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return self.vision + self.prune + self.prefill

    @property
    def tokens_per_second(self) -> float:
        """Decode speed."""
        return 1 / self.per_token


@cache
def fitted() -> dict[str, Efficiency]:
    """Return the fitted efficiencies by stage: vision, prefill and decode."""
    text = Path(__file__).parents[1].joinpath("data", "efficiency.json").read_text(encoding="utf-8")
    return {stage: Efficiency(**values) for stage, values in json.loads(text).items()}


def rate(device: Device, precision: str) -> float:
    """Return the operations/s of the decoder's matrix products.

    int4 weights are multiplied in FP16. Raises UserError if the device has no FP8.
    """
    if precision == "fp8":
        if device.fp8 is None:
            raise UserError(
                f"{device.title} has no FP8 "
                f"| its compute capability is {device.capability}, expected 8.9 or newer "
                "| plan with --precision int4, int8 or fp16",
                code=2,
            )
        return device.fp8
    return device.int8 if precision == "int8" else device.fp16


def vision_work(model: Model, device: Device) -> tuple[float, int]:
    """Return the seconds that vision takes at the peak, and its layers."""
    return model.vision_flops / device.fp16, model.vision.layers if model.vision else 0


def prefill_work(
    model: Model, device: Device, schedule: costs.Schedule, text_tokens: int
) -> tuple[float, int]:
    """Return the seconds that prefill takes at the peak, and its layers. Raises UserError."""
    flops = costs.prefill_flops(model.decoder, schedule, text_tokens)
    return flops / rate(device, model.precision), model.decoder.num_layers


def decode_work(
    model: Model, device: Device, schedule: costs.Schedule, rows: int, cache_rows: int | None = None
) -> tuple[float, int]:
    """Return the seconds that one token takes at the peak after ``rows`` rows of text, and the layers.

    Every weight and the kv cache are read once: the rows that are written, or ``cache_rows`` in each layer if
    the engine reads all that it has.
    """
    layers = model.decoder.num_layers
    filled = (schedule, rows) if cache_rows is None else (((layers, cache_rows),), 0)
    read = model.layer_bytes + model.head_bytes + costs.cache_bytes(model.decoder, *filled)
    return read / device.bandwidth, layers


def times(
    model: Model,
    device: Device,
    schedule: costs.Schedule,
    text_tokens: int = costs.TEXT_TOKENS,
    new_tokens: int = 64,
    efficiency: Mapping[str, Efficiency] | None = None,
    cache_rows: int | None = None,
) -> Times:
    """Estimate the stages for one image of ``schedule`` among ``text_tokens`` text tokens.

    Decode is the time per token in the middle of an answer of ``new_tokens``. ``efficiency`` None means
    ``fitted()``. ``cache_rows``: see ``decode_work``.
    """
    written = text_tokens + new_tokens // 2
    use = efficiency or fitted()
    seen, width = model.manifest.num_visual_tokens, model.decoder.hidden_size
    similarities = 2 * seen**2 * width if model.manifest.method.prunes else 0
    return Times(
        vision=use["vision"].seconds(*vision_work(model, device)),
        prune=similarities / (device.fp16 * use["prefill"].share),
        prefill=use["prefill"].seconds(*prefill_work(model, device, schedule, text_tokens)),
        per_token=use["decode"].seconds(*decode_work(model, device, schedule, written, cache_rows)),
    )


def spread(estimate: Times) -> tuple[Times, Times]:
    """Return the shortest and the longest times that ``estimate`` stands for, by ``ERRORS``.

    Nobody has published times of *prune*; it gets prefill's error.
    """

    def off_by(sign: int) -> Times:
        return Times(
            vision=estimate.vision / (1 + sign * ERRORS["vision"]),
            prune=estimate.prune / (1 + sign * ERRORS["prefill"]),
            prefill=estimate.prefill / (1 + sign * ERRORS["prefill"]),
            per_token=estimate.per_token / (1 + sign * ERRORS["decode"]),
        )

    return off_by(1), off_by(-1)
