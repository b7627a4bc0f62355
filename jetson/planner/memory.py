"""Memory that a model needs on a device, to answer and to compile. All sizes are in bytes.

Weights and the kv cache are counted exactly. TensorRT allocates the cache for ``max_context`` rows, whatever
is kept. The rest is estimated:

* Firmware: 4 % of a Jetson's memory. An AGX Orin shows 62,817 of 65,536 MB (a tegrastats line of JetPack
  7.2). On modules with 8 GB or less it is 7 %: an Orin Nano shows 7,803,200 kB of 8 GiB.
* System: 0.8 GB without a desktop, which is our assumption. NVIDIA says that the desktop takes up to 865 MB.
* Scratch: the activations of the largest call, ``max_context`` rows at once. The builder plans it, and the
  engine holds it from loading on. It is the input and output of every matrix of one layer, since layers run
  one after another and share it. The dialect ``primitive``, which spells attention out, adds 2.5 times the
  attention scores [heads, rows, 2 x max_context] in FP16. For one layer of LLaVA-1.5-7B's sizes this gives
  0.38 GB and 5.75 GB. TensorRT for RTX 1.7.1's builder reported 0.371 GB (``native``) and 5.547 GB
  (``primitive``) as its "Total Activation Memory" for SM86 and 4,096 rows (2026-11-30). Full TensorRT may
  differ.
* Build: 0.5 GiB and 2.7 times the weights of the largest graph. With that much memory TensorRT for RTX 1.7
  compiled LLaVA-1.5-7B's language model in int4, whole and cut in 2 and 4. With 12 to 17 % less it failed
  (docs/measurements/tensorrt-rtx.md). The scratch is added, since the builder runs what it times on the
  device. That part was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foveate.engines.backend import MAX_CONTEXT
from foveate.jetson.device.devices import Device
from foveate.jetson.planner.model_sizes import Model
from foveate.runtime.measuring import costs

__all__ = ["DIALECTS", "Memory", "dialect_of", "fitting_context", "memory"]

DIALECTS = ("native", "primitive")
"""The dialect for TensorRT from 10.15 on, and the one for older versions such as JetPack 6's."""
_SMALL = 8 * 2**30
_FIRMWARE, _FIRMWARE_SMALL, _SYSTEM, _DESKTOP = 0.04, 0.07, 800e6, 865e6
_SCORES = 2.5
_CONTEXT_STEP = 256
_BUILD, _BUILDER = 2.7, 0.5 * 2**30
_HALF = 2


@dataclass(frozen=True)
class Memory:
    """Memory needs in bytes.

    ``total`` is the device's memory. ``weights`` include the token embedding, which is mapped. ``cache`` is
    the kv cache of ``max_context`` rows. ``build_peak`` is what compiling needs on top of ``system``.
    """

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
        """Memory in use while answering, including the system."""
        return self.system + self.weights + self.cache + self.scratch

    @property
    def build(self) -> int:
        """Memory in use while the largest graph is compiled, including the system."""
        return self.system + self.build_peak

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ``run`` and ``build`` as plain data.

        "fits" is True if answering fits the device, "builds" if compiling does.
        """
        return asdict(self) | {
            "run": self.run,
            "build": self.build,
            "fits": self.run <= self.total,
            "builds": self.build <= self.total,
        }


def dialect_of(device: Device) -> str:
    """Return the dialect to plan for: of those that ``device`` may need, the one that takes more memory.

    JetPack 6's TensorRT accepts only ``primitive``.
    """
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
    """Return what an engine of ``model`` needs on ``device``.

    ``max_context`` is the number of rows of the kv cache (None: the default of ``foveate compile``).
    ``dialect`` None means ``dialect_of(device)``. ``llm_parts`` is the least number of graphs that the
    language model is cut into; its bundle or its method may cut it into more. A GPU with its own memory
    counts no system.
    """
    d = model.decoder
    context, dialect = min(max_context or MAX_CONTEXT, d.max_positions), dialect or dialect_of(device)
    layers = min(model.most_layers, -(-d.num_layers // llm_parts))
    largest = model.layer_bytes * layers // d.num_layers + model.head_bytes
    embedding = d.vocab_size * d.hidden_size * _HALF
    scratch = _scratch(model, context, dialect)
    return Memory(
        total=device.memory,
        system=_system(device, desktop),
        weights=model.layer_bytes + model.head_bytes + embedding + model.vision_bytes,
        cache=costs.cache_bytes(d, ((d.num_layers, context),), 0),
        scratch=scratch,
        build_peak=round(_BUILD * max(largest, model.vision_bytes) + _BUILDER + scratch),
        max_context=context,
        dialect=dialect,
    )


def fitting_context(
    model: Model, device: Device, rows: int, dialect: str | None, desktop: bool
) -> int | None:
    """Return the largest ``max_context`` below the default that fits, or None.

    It must have room for an answer of ``rows`` rows.
    """
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
    """Return the scratch of the graph that needs most; see the module's docstring.

    The attention scores of the vision encoder are not counted.
    """
    d = model.decoder
    language = context * (6 * d.hidden_size + 2 * d.intermediate_size) * _HALF
    if dialect == "primitive":
        language += round(_SCORES * d.num_heads * context * 2 * context * _HALF)
    if not model.vision:
        return language
    width = 6 * model.vision.hidden + 2 * model.vision.intermediate
    return max(language, model.patches * width * _HALF)
