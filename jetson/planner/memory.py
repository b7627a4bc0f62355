"""Memory that a model needs on a device, to answer and to compile. All sizes are in bytes.

Weights and the kv cache are counted exactly. TensorRT allocates the cache for ``max_context`` rows, whatever
is kept. The rest is estimated:

* Firmware: an Orin Nano shows 7,803,200 kB of its 8 GiB, so 0.6 GB on modules with 8 GB or less. On larger
  ones 4 %: an AGX Orin shows 62,817 of 65,536 MB (a tegrastats line of JetPack 7.2).
* System: 0.8 GB without a desktop, which is our assumption. NVIDIA says that the desktop takes up to 865 MB.
* Context: 0.3 GB for CUDA and TensorRT in the process that answers. This is our assumption, after what users
  of other programs see on desktop GPUs.
* Scratch: the activations of the largest call (``jetson.planner.scratch``). It is what a prompt of so many
  rows needs; shorter prompts take less. The attention scores of the vision encoder are not counted.
* Buffers: the inputs and outputs of the largest call. In the dialect ``primitive`` these are mostly the new
  keys and values, which are then copied into the cache.
* Build: 0.5 GiB and 2.7 times the weights of the largest graph. With that much memory TensorRT for RTX 1.7
  compiled LLaVA-1.5-7B's language model in int4, whole and cut in 2 and 4. With 12 to 17 % less it failed
  (docs/measurements/tensorrt-rtx.md). The scratch is added, since the builder runs what it times on the
  device. That part was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foveate.jetson.device.devices import Device
from foveate.jetson.planner.model_sizes import Model
from foveate.jetson.planner.scratch import scratch
from foveate.runtime.bundle.manifest import PREFILL_ROWS
from foveate.runtime.llm.cache_rows import STEP, layer_row_bytes, rounded_up
from foveate.runtime.measuring import costs

__all__ = ["DIALECTS", "Memory", "dialect_of", "fitting_context", "memory"]

DIALECTS = ("native", "primitive")
"""The dialect for TensorRT from 10.15 on, and the one for older versions such as JetPack 6's."""
_SMALL = 8 * 2**30
_FIRMWARE, _FIRMWARE_SMALL = 0.04, 8 * 2**30 - 7_803_200 * 2**10
_SYSTEM, _DESKTOP, _CONTEXT = 800e6, 865e6, round(300e6)
_BUILD, _BUILDER = 2.7, 0.5 * 2**30
_HALF = 2


@dataclass(frozen=True)
class Memory:
    """Memory needs in bytes.

    ``total`` is the device's memory. ``weights`` include the token embedding, which is mapped. ``cache`` is
    the kv cache of ``max_context`` rows. At most ``rows`` are computed at once. ``build_peak`` is what
    compiling needs on top of ``system``.
    """

    total: int
    system: int
    context: int
    weights: int
    cache: int
    scratch: int
    buffers: int
    build_peak: int
    max_context: int
    rows: int
    dialect: str

    @property
    def run(self) -> int:
        """Memory in use while answering, including the system."""
        return self.system + self.context + self.weights + self.cache + self.scratch + self.buffers

    @property
    def build(self) -> int:
        """Memory in use while the largest graph is compiled, including the system."""
        return self.system + self.context + self.build_peak

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
    context, dialect = model.cache_rows(max_context), dialect or dialect_of(device)
    layers = min(model.most_layers, -(-d.num_layers // llm_parts))
    largest = model.layer_bytes * layers // d.num_layers + model.head_bytes
    embedding = d.vocab_size * d.hidden_size * _HALF
    # a prompt with images goes through in-LLM pruners in one piece
    rows = context if model.manifest.method.cuts else min(context, PREFILL_ROWS)
    int4 = model.manifest.precision.decoder == "int4"
    activations = max(scratch(d, rows, context, dialect, int4=int4), _vision_scratch(model))
    return Memory(
        total=device.memory,
        system=_system(device, desktop),
        context=_CONTEXT,
        weights=model.layer_bytes + model.head_bytes + embedding + model.vision_bytes,
        cache=costs.cache_bytes(d, ((d.num_layers, context),), 0),
        scratch=activations,
        buffers=_buffers(model, layers, rows, dialect),
        build_peak=round(_BUILD * max(largest, model.vision_bytes) + _BUILDER + activations),
        max_context=context,
        rows=rows,
        dialect=dialect,
    )


def fitting_context(
    model: Model, device: Device, below: int, rows: int, dialect: str | None, desktop: bool
) -> int | None:
    """Return the largest ``max_context`` smaller than ``below`` that fits, or None.

    It must have room for an answer of ``rows`` rows.
    """
    sizes = range(rounded_up(below) - STEP, rounded_up(rows) - 1, -STEP)

    def fits(size: int) -> bool:
        needs = memory(model, device, max_context=size, dialect=dialect, desktop=desktop)
        return needs.run <= needs.total

    return next(filter(fits, sizes), None)


def _system(device: Device, desktop: bool) -> int:
    if not device.is_jetson:
        return 0
    firmware = _FIRMWARE_SMALL if device.memory <= _SMALL else device.memory * _FIRMWARE
    return round(firmware + _SYSTEM + (_DESKTOP if desktop else 0))


def _vision_scratch(model: Model) -> int:
    """Return the scratch of the vision encoder, without its attention scores."""
    if not model.vision:
        return 0
    return model.patches * (6 * model.vision.hidden + 2 * model.vision.intermediate) * _HALF


def _buffers(model: Model, layers: int, rows: int, dialect: str) -> int:
    """Return the bytes of a segment's inputs and outputs of ``rows`` rows, apart from the cache."""
    d = model.decoder
    new = layers * layer_row_bytes(d) if dialect == "primitive" else 0
    return rows * (2 * d.hidden_size * _HALF + new)
