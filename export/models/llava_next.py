"""LLaVA-NeXT (model_type ``llava_next``): LLaVA with images cut into tiles.

An image is encoded as a batch of tiles, whose number depends on its shape. The first tile is the whole
image, squeezed into a square. The others are cut from the image enlarged to one of a few canvases
(``runtime/images/processor.py``, kind ``anyres``). The host decides which of the visual tokens the language
model reads, and where a row of them ends in a newline (``runtime/images/token_layout.py``), so one graph
serves every shape. The newline's embedding is ``image_newline.npy`` in the bundle. The decoder is LLaMA's
or Mistral's.

Pre-LLM pruners see one tile at a time. A tile's share of the image's budget is proportional to the visual
tokens that it shows; padding is never shown to a pruner. The tokens that are kept take their places in the
rows of the whole image. Newlines are the first to be dropped, and merged tokens without a place come last.
This is VisionZip's published procedure, and HiPrune, CDPruner, VisPruner and others share it. They give
every tile the same number of tokens, which is equal to ours for images without padding. It is our reading
for methods whose publication does not say (FSR, HoloV, OC-VTP, TRIM, VScan) or does not treat LLaVA-NeXT.
DivPrune is published for the image as a whole. In-LLM pruners see the image as a whole, with its newlines.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Entry, Source
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.keys import config_keys, processor_keys
from foveate.export.model_parts import ModelParts
from foveate.export.models import llava
from foveate.export.settings import image_processor
from foveate.export.spec import BundleFiles, ClipVisionSpec

__all__ = ["CHECKPOINTS", "CONFIGS", "KEYS", "load", "tiny"]

CHECKPOINTS = {
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
}

KEYS = replace(llava.KEYS, top=config_keys.LLAVA_NEXT, image=processor_keys.TILES)

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_MISTRAL = {
    "model_type": "mistral",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "vocab_size": 32064,
}
_SHARED = {
    "model_type": "llava_next",
    "image_grid_pinpoints": _PINPOINTS,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "vision_config": llava.CLIP_TOWER,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava-v1.6-vicuna-7b": _SHARED | {"text_config": llava.VICUNA},
    "llava-v1.6-vicuna-13b": _SHARED | {"text_config": llava.VICUNA_13B},
    "llava-v1.6-mistral-7b": _SHARED | {"text_config": _MISTRAL},
}
"""Configs of the true sizes, for dummies. A checkpoint uses its own config."""

_NEWLINE = ("image_newline", "model.image_newline", "language_model.model.image_newline")


def load(source: Source, *, clip: str | None = None, max_pixels: int | None = None) -> ModelParts:
    """Return the parts of a LLaVA-NeXT checkpoint. Arguments and errors are those of ``llava.load``."""
    image_processor.refuse_max_pixels(source, max_pixels)
    return _parts(source, *llava.clip_of(source, clip))


def tiny(**options: Any) -> ModelParts:
    """Make a random model of LLaVA-NeXT's form for tests: up to 5 tiles of 16 patches.

    ``options`` are those of ``llava.tiny``.
    """
    config, clip = llava.tiny_configs(**{"image_size": 28, "max_positions": 1024} | options)
    side = config["vision_config"]["image_size"]
    canvases = [[down * side // 336, across * side // 336] for down, across in _PINPOINTS]
    config |= {"model_type": "llava_next", "image_grid_pinpoints": canvases}
    return _parts(Dummy("tiny-llava-next", config), clip, Dummy("tiny-clip", clip))


def _parts(source: Source, clip: dict[str, Any] | None, clip_source: Source | str | None) -> ModelParts:
    side = source.config.get("vision_config", llava.CLIP_TOWER).get("image_size", 224)
    canvases = source.config.get("image_grid_pinpoints") or _PINPOINTS
    if any(edge % side or not edge for canvas in canvases for edge in canvas):
        raise UserError(
            f"{source.label}: image_grid_pinpoints is not supported "
            f"| got {canvases}, expected multiples of {side} | use another checkpoint"
        )
    image = image_processor.tile_settings(source, side, canvases)
    width = _width(source)
    parts = llava.parts(source, clip, clip_source, image, {"image_newline": Entry((width,), _NEWLINE)})
    tiles = 1 + max(height * across // side**2 for height, across in canvases)
    newline: BundleFiles = {"image_newline.npy": _npy(parts.weights.get("image_newline").float().numpy())}
    vision = parts.spec.vision
    assert isinstance(vision, ClipVisionSpec)  # of the tower that LLaVA has
    spec = replace(parts.spec, family="llava_next", vision=replace(vision, max_tiles=tiles))
    return replace(parts, spec=spec, files=parts.files | newline)


def _width(source: Source) -> int:
    return source.config.get("text_config", {}).get("hidden_size", 4096)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
