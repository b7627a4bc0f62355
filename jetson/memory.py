"""What an answer and a compilation need of a device's memory, before anything is built. Bytes throughout.

Weights and cache are counted. What the system takes and what an engine needs besides are estimates, each with its ground:

* The firmware keeps 4 % on a Jetson: of 65,536 MB an AGX Orin shows 62,817 (a tegrastats line of JetPack 7.2).
* The system without a desktop: 0.8 GB, which is our assumption. NVIDIA says of the desktop that it takes up to 865 MB.
* Activations: every matrix's input and output of one layer at once, the widest graph's.
* A build takes 0.5 GiB and 2.7 times the weights of the largest graph: with so much TensorRT for RTX 1.7 compiled LLaVA-1.5-7B's language
  model in int4, whole and cut in 2 and 4, and with 12 to 17 % less it did not (docs/measurements.md). Full TensorRT may differ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foveate.jetson.devices import Device
from foveate.jetson.models import Model
from foveate.runtime import costs

__all__ = ["Memory", "memory"]

_FIRMWARE, _SYSTEM, _DESKTOP = 0.04, 800e6, 865e6
_BUILD, _BUILDER = 2.7, 0.5 * 2**30
_HALF = 2


@dataclass(frozen=True)
class Memory:
    """``weights`` with the token embedding, which is mapped; ``build_peak`` besides ``system``."""

    total: int
    system: int
    weights: int
    cache: int
    activations: int
    build_peak: int

    @property
    def run(self) -> int:
        """While it answers, the system included."""
        return self.system + self.weights + self.cache + self.activations

    @property
    def build(self) -> int:
        """While the largest graph is compiled, the system included."""
        return self.system + self.build_peak

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "run": self.run,
            "build": self.build,
            "fits": self.run <= self.total,
            "builds": self.build <= self.total,
        }


def memory(
    model: Model,
    device: Device,
    schedule: costs.Schedule,
    text_tokens: int = costs.TEXT_TOKENS,
    new_tokens: int = 64,
    desktop: bool = True,
    llm_parts: int = 1,
) -> Memory:
    """For one picture of ``schedule`` among ``text_tokens`` and an answer of ``new_tokens``. ``llm_parts``: into so many graphs the
    language model is cut, or into more, as its bundle or its method has it. A GPU with memory of its own has no system in it."""
    d = model.decoder
    layers = min(model.most_layers, -(-d["num_layers"] // llm_parts))
    largest = model.layer_bytes * layers // d["num_layers"] + model.head_bytes
    embedding = d["vocab_size"] * d["hidden_size"] * _HALF
    system = device.memory * _FIRMWARE + _SYSTEM + (_DESKTOP if desktop else 0) if device.is_jetson else 0
    rows = max(tokens for _, tokens in schedule) + text_tokens
    width = 6 * d["hidden_size"] + 2 * d["intermediate_size"]
    activations = [rows * width * _HALF]
    if model.vision:
        width = 6 * model.vision["hidden"] + 2 * model.vision["intermediate"]
        activations.append(model.patches * width * _HALF)
    return Memory(
        total=device.memory,
        system=round(system),
        weights=model.layer_bytes + model.head_bytes + embedding + model.vision_bytes,
        cache=costs.cache_bytes(d, schedule, text_tokens + new_tokens),
        activations=max(activations),
        build_peak=round(_BUILD * max(largest, model.vision_bytes) + _BUILDER),
    )
