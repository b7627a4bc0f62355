"""What an answer and a compilation need of a device's memory, before anything is built. Bytes throughout.

Weights and the kv cache are counted: TensorRT allocates the cache for ``max_context`` rows, whatever is kept. What the system
takes and what an engine needs besides are estimates, each with its ground:

* The firmware keeps 4 % on a Jetson: of 65,536 MB an AGX Orin shows 62,817 (a tegrastats line of JetPack 7.2). On modules with
  8 GB or less it is 7 %: an Orin Nano shows 7,803,200 kB of 8 GiB.
* The system without a desktop: 0.8 GB, which is our assumption. NVIDIA says of the desktop that it takes up to 865 MB.
* Scratch is what the builder plans for the largest call, ``max_context`` rows at once, and the engine holds from when it is
  loaded. It is every matrix's input and output of one layer, and in the dialect ``primitive``, which spells attention out, 2.5
  times the scores [heads, rows, 2 x max_context] in FP16. For one layer of LLaVA-1.5-7B's sizes that is 0.38 GB and 5.75 GB;
  TensorRT for RTX 1.7.1's builder reported 0.371 GB (``native``) and 5.547 GB (``primitive``) as its "Total Activation
  Memory" for SM86, 4,096 rows (2026-11-30). Layers run one after another and share it. Full TensorRT may differ.
* A build takes 0.5 GiB and 2.7 times the weights of the largest graph: with so much TensorRT for RTX 1.7 compiled LLaVA-1.5-7B's language
  model in int4, whole and cut in 2 and 4, and with 12 to 17 % less it did not (docs/measurements.md). The scratch comes on top,
  since the builder runs what it times on the device; there it was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foveate.jetson.device.devices import Device
from foveate.jetson.planner.model_sizes import Model
from foveate.runtime.compiling.compile import MAX_CONTEXT
from foveate.runtime.measuring import costs

__all__ = ["DIALECTS", "Memory", "dialect_of", "fitting_context", "memory"]

DIALECTS = ("native", "primitive")
"""What TensorRT from 10.15 on is given, and what older ones are, JetPack 6's among them."""
_SMALL = 8 * 2**30
_FIRMWARE, _FIRMWARE_SMALL, _SYSTEM, _DESKTOP = 0.04, 0.07, 800e6, 865e6
_SCORES = 2.5
_CONTEXT_STEP = 256
_BUILD, _BUILDER = 2.7, 0.5 * 2**30
_HALF = 2


@dataclass(frozen=True)
class Memory:
    """``weights`` with the token embedding, which is mapped; ``cache`` of ``max_context`` rows; ``build_peak`` besides ``system``."""

    total: int
    system: int
    weights: int
    cache: int
    scratch: int
    build_peak: int
    max_context: int
    dialect: str

    @property
    def run(self) -> int:
        """While it answers, the system included."""
        return self.system + self.weights + self.cache + self.scratch

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


def dialect_of(device: Device) -> str:
    """The one that needs more of what ``device`` may be given: JetPack 6's TensorRT takes ``primitive`` alone."""
    return "primitive" if device.is_jetson else "native"


def memory(
    model: Model,
    device: Device,
    *,
    max_context: int | None = None,
    dialect: str | None = None,
    desktop: bool = True,
    llm_parts: int = 1,
) -> Memory:
    """Of an engine whose cache has ``max_context`` rows (None: as ``compile`` chooses) in ``dialect`` (None: ``dialect_of``).
    ``llm_parts``: into so many graphs the language model is cut, or into more, as its bundle or its method has it. A GPU with
    memory of its own has no system in it."""
    d = model.decoder
    context, dialect = min(max_context or MAX_CONTEXT, d["max_positions"]), dialect or dialect_of(device)
    layers = min(model.most_layers, -(-d["num_layers"] // llm_parts))
    largest = model.layer_bytes * layers // d["num_layers"] + model.head_bytes
    embedding = d["vocab_size"] * d["hidden_size"] * _HALF
    scratch = _scratch(model, context, dialect)
    return Memory(
        total=device.memory,
        system=_system(device, desktop),
        weights=model.layer_bytes + model.head_bytes + embedding + model.vision_bytes,
        cache=costs.cache_bytes(d, ((d["num_layers"], context),), 0),
        scratch=scratch,
        build_peak=round(_BUILD * max(largest, model.vision_bytes) + _BUILDER + scratch),
        max_context=context,
        dialect=dialect,
    )


def fitting_context(
    model: Model, device: Device, rows: int, dialect: str | None, desktop: bool
) -> int | None:
    """The largest ``max_context`` below the usual one with which an answer of ``rows`` fits the device; None: there is none."""
    least = -(-rows // _CONTEXT_STEP) * _CONTEXT_STEP
    sizes = range(MAX_CONTEXT - _CONTEXT_STEP, least - 1, -_CONTEXT_STEP)

    def fits(size: int) -> bool:
        needs = memory(model, device, max_context=size, dialect=dialect, desktop=desktop)
        return needs.run <= needs.total

    return next(filter(fits, sizes), None)


def _system(device: Device, desktop: bool) -> int:
    if not device.is_jetson:
        return 0
    firmware = _FIRMWARE_SMALL if device.memory <= _SMALL else _FIRMWARE
    return round(device.memory * firmware + _SYSTEM + (_DESKTOP if desktop else 0))


def _scratch(model: Model, context: int, dialect: str) -> int:
    """Of the graph that needs most, see the top. The scores of the vision encoder's attention are not counted."""
    d = model.decoder
    language = context * (6 * d["hidden_size"] + 2 * d["intermediate_size"]) * _HALF
    if dialect == "primitive":
        language += round(_SCORES * d["num_heads"] * context * 2 * context * _HALF)
    if not model.vision:
        return language
    width = 6 * model.vision["hidden"] + 2 * model.vision["intermediate"]
    return max(language, model.patches * width * _HALF)
