"""The table ``jetson/data/models.json``: sizes of the models that are known by name.

``foveate plan`` reads it, since it has no torch. ``make generated`` writes it from each family's ``CONFIGS``.
"""

from __future__ import annotations

from typing import Any

from foveate.export import models
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.model_parts import ModelParts
from foveate.export.settings.hf_config import DECODERS
from foveate.jetson.planner.model_config import PHOTO
from foveate.runtime.images.processor import image_processor

__all__ = ["table"]

_DECODER = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "intermediate_size")
_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
)
_SIZES += ("vocab_size", "max_position_embeddings")


def table() -> dict[str, dict[str, Any]]:
    """Return the table as plain data.

    It has ``families`` by ``model_type``, the default sizes of ``decoders``, and a row for each of the
    ``models``.
    """
    families, rows = {}, {}
    for name in models.families():
        configs = models.family(name).CONFIGS
        parts = {each: models.family(name).load(Dummy(each, config)) for each, config in configs.items()}
        hub = models.family(name).CHECKPOINTS
        rows |= {each: {"checkpoint": hub.get(each)} | _row(found) for each, found in parts.items()}
        families[name] = {
            "vision": next(iter(parts.values())).spec.vision.sizes["kind"],
            "decoder": models.family(name).KEYS.text,
            "max_positions": max(
                filter(None, (_capped(parts[each], configs[each]) for each in parts)), default=None
            ),
        }
    decoders = {
        name: {key: values[key] for key in _SIZES if key in values} for name, values in DECODERS.items()
    }
    return {"families": families, "decoders": decoders, "models": rows}


def _row(parts: ModelParts) -> dict[str, Any]:
    spec = parts.spec
    return {
        "vision": spec.vision.sizes,
        "visual_tokens": image_processor(parts.image).token_layout(PHOTO, spec.vision.grid).total,
        "most_visual_tokens": spec.vision.image_tokens,
        "any_size": spec.vision.varies,
        "decoder": {
            field: getattr(spec.decoder, field) for field in (*_DECODER, "vocab_size", "max_positions")
        },
    }


def _capped(parts: ModelParts, config: dict[str, Any]) -> int | None:
    """Return the most positions that we run for the family if its config states more, else None."""
    said = (config.get("text_config") or config)["max_position_embeddings"]
    return parts.spec.decoder.max_positions if parts.spec.decoder.max_positions < said else None
