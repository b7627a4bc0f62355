"""How long the stages of an answer take on a device: a roofline with fitted efficiencies.

A stage that is bound by arithmetic (vision, prune, prefill) takes FLOPs / (rate * efficiency) and a little per layer; one bound
by memory (decode) takes bytes / (bandwidth * efficiency) and a little per layer. ``efficiency.json`` has the two numbers of each,
fitted by ``scripts/fit_plan.py`` to published measurements of Orins (``measured.json``); a test holds the one to the other.

They are what TensorRT-Edge-LLM's kernels reach. Engines that plain TensorRT builds may be slower, above all with int4 weights.
The prune stage was published by nobody: it is counted as one similarity of every visual token with every other, at prefill's
efficiency, so that it is a lower bound for methods that pick in a loop.
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

__all__ = ["Efficiency", "Times", "decode_work", "fitted", "prefill_work", "rate", "times", "vision_work"]


@dataclass(frozen=True)
class Efficiency:
    """``share`` of the peak; ``per_layer`` seconds besides."""

    share: float
    per_layer: float

    def seconds(self, ideal: float, layers: int) -> float:
        return ideal / self.share + self.per_layer * layers


@dataclass(frozen=True)
class Times:
    """Seconds of one picture's answer; what the host does to the picture is not in it."""

    vision: float
    prune: float
    prefill: float
    per_token: float

    @property
    def first_token(self) -> float:
        return self.vision + self.prune + self.prefill

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.per_token


@cache
def fitted() -> dict[str, Efficiency]:
    text = Path(__file__).parents[1].joinpath("data", "efficiency.json").read_text(encoding="utf-8")
    return {stage: Efficiency(**values) for stage, values in json.loads(text).items()}


def rate(device: Device, precision: str) -> float:
    """Operations/s of the decoder's products: int4 weights are multiplied in FP16. Raises UserError."""
    if precision == "fp8":
        if device.fp8 is None:
            raise UserError(
                f"{device.title} has no FP8 | its compute capability is {device.capability}, expected 8.9 or newer "
                "| plan with --precision int4, int8 or fp16",
                code=2,
            )
        return device.fp8
    return device.int8 if precision == "int8" else device.fp16


def vision_work(model: Model, device: Device) -> tuple[float, int]:
    """(seconds at the peak, layers)."""
    return model.vision_flops / device.fp16, model.vision["layers"] if model.vision else 0


def prefill_work(
    model: Model, device: Device, schedule: costs.Schedule, text_tokens: int
) -> tuple[float, int]:
    flops = costs.prefill_flops(model.decoder, schedule, text_tokens)
    return flops / rate(device, model.precision), model.decoder["num_layers"]


def decode_work(model: Model, device: Device, schedule: costs.Schedule, rows: int) -> tuple[float, int]:
    """Of one token behind ``rows`` rows of text: every weight and the whole cache are read once."""
    read = model.layer_bytes + model.head_bytes + costs.cache_bytes(model.decoder, schedule, rows)
    return read / device.bandwidth, model.decoder["num_layers"]


def times(
    model: Model,
    device: Device,
    schedule: costs.Schedule,
    text_tokens: int = costs.TEXT_TOKENS,
    new_tokens: int = 64,
    efficiency: Mapping[str, Efficiency] | None = None,
) -> Times:
    """Estimates for one picture of ``schedule`` among ``text_tokens``; decoding is that of the middle of ``new_tokens``."""
    use = efficiency or fitted()
    seen, width = model.manifest.num_visual_tokens, model.decoder["hidden_size"]
    similarities = 0 if model.manifest.method["name"] == "none" else 2 * seen**2 * width
    return Times(
        vision=use["vision"].seconds(*vision_work(model, device)),
        prune=similarities / (device.fp16 * use["prefill"].share),
        prefill=use["prefill"].seconds(*prefill_work(model, device, schedule, text_tokens)),
        per_token=use["decode"].seconds(*decode_work(model, device, schedule, text_tokens + new_tokens // 2)),
    )
