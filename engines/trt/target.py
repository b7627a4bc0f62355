"""The targets ``tensorrt`` and ``tensorrt-rtx``, and their options."""

from __future__ import annotations

from foveate.engines.backend import MAX_CONTEXT, Backend, Option, Target
from foveate.engines.errors import install_extra
from foveate.engines.trt.library import LIBRARY

__all__ = ["TARGETS"]

_TITLE = "TensorRT and TensorRT for RTX"

_OPTIONS = (
    Option(
        "max_context",
        "Give the kv cache room for this many rows, prompt and answer together. All of them take memory "
        "and are read for every token, however short the prompt is (default: what one question about the "
        f"largest image needs without pruning, at most {MAX_CONTEXT}).",
        kind="number",
        least=1,
    ),
    Option(
        "optimization_level",
        "Let the builder search with this effort, from 0 to 5 (default: TensorRT's own level).",
        kind="number",
        least=0,
        most=5,
    ),
    Option(
        "workspace",
        "Let the builder use at most this much device memory, in MiB (default: TensorRT's own limit).",
        kind="number",
        least=1,
        metavar="MIB",
    ),
    Option(
        "version_compatible",
        "Make engines that later TensorRT versions can load as well. Not yet tried on a device "
        "(default: engines for this version).",
        kind="switch",
    ),
    Option(
        "cuda_graphs",
        "Replay decoding steps as CUDA graphs. Not yet tried on a device (default: off).",
        kind="switch",
    ),
    Option(
        "device_sampling",
        "Pick the likeliest tokens on the GPU, for greedy decoding and for a --top-k below 64. Not yet "
        "tried on a device (default: the CPU picks them).",
        kind="switch",
    ),
)

_HARDWARE_COMPATIBLE = Option(
    "hardware_compatible",
    "TensorRT only: make engines that run on any GPU from Ampere on. Not yet tried on a device "
    "(default: engines for this GPU).",
    kind="switch",
)

_CAPABILITY = Option(
    "capability",
    "TensorRT for RTX only: compile for these GPUs (default: one portable engine).",
    kind="names",
    metavar="SM86[,SM89]",
)


def _make(target: str) -> Backend:
    from foveate.engines.trt.backend import TensorRT

    return TensorRT(target)


TARGETS = (
    Target(
        "tensorrt",
        title=_TITLE,
        libraries=(LIBRARY["tensorrt"], "cuda"),
        install="JetPack brings it; on a PC, "
        f"{install_extra('tensorrt')}, or '.[tensorrt-cu12]' if the driver is of CUDA 12",
        rank=10,
        options=(*_OPTIONS, _HARDWARE_COMPATIBLE),
        make=lambda: _make("tensorrt"),
    ),
    Target(
        "tensorrt-rtx",
        title=_TITLE,
        libraries=(LIBRARY["tensorrt-rtx"], "cuda"),
        install=f"{install_extra('rtx')}, or '.[rtx-cu12]' if the driver is of CUDA 12",
        rank=20,
        options=(*_OPTIONS, _CAPABILITY),
        make=lambda: _make("tensorrt-rtx"),
    ),
)
