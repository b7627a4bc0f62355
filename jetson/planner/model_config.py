"""Sizes of a model from its ``config.json`` in Hugging Face's format, to plan models that are not built.

The keys that are read depend on the kind of the family's vision encoder, so a new family of a known kind
needs no change here. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.trt.limits import LARGEST_SORT
from foveate.runtime.images.anyres import AnyresProcessor
from foveate.runtime.images.pixels import Normalization

__all__ = ["PHOTO", "read"]

PHOTO = (640, 480)
"""Width and height of the image that is planned for if the number of visual tokens depends on the image."""


Table = Mapping[str, Mapping[str, Any]]


def read(path: Path, families: Table, decoders: Table) -> dict[str, Any]:
    """Return a row in the format of ``models.json``, with its ``name``.

    ``families`` maps a ``model_type`` to the kind of its vision encoder (``vision``), the ``decoder`` of a
    config that names none, and the most positions that we run for the family if its configs state more
    (``max_positions``). ``decoders`` maps a ``text_config``'s ``model_type`` to the sizes that it may leave
    out. Raises UserError for other families and for missing sizes.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        family = families[config["model_type"]]
        text = config.get("text_config") or config
        kind = text.get("model_type")
        decoder = _decoder(decoders[kind if kind in decoders else family["decoder"]] | text)
        row = {"clip": _clip, "merged": _merged}[family["vision"]](config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot plan from {path} | {type(error).__name__}: {error} "
            f"| expected a config.json of {', '.join(sorted(families))} that states its sizes",
            code=2,
        ) from error
    most = family["max_positions"] or decoder["max_positions"]
    decoder["max_positions"] = min(most, decoder["max_positions"])
    return {"name": config["model_type"], **row, "decoder": decoder}


def _clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return vision sizes of a CLIP encoder.

    Images have several tiles if there are ``image_grid_pinpoints``.
    """
    v = config["vision_config"]
    layer = config.get("vision_feature_layer", -2)
    side = v["image_size"] // v["patch_size"]
    vision = {
        "kind": "clip",
        "hidden": v["hidden_size"],
        "intermediate": v["intermediate_size"],
        "layers": layer % (v["num_hidden_layers"] + 1),
        "patch_size": v["patch_size"],
        "patches": side**2,
    }
    tokens = most = side**2
    if pinpoints := config.get("image_grid_pinpoints"):
        tiles = AnyresProcessor(v["image_size"], pinpoints, Normalization())
        tokens = tiles.token_layout(PHOTO, (side, side)).total
        most *= 1 + max(height * width // v["image_size"] ** 2 for height, width in pinpoints)
    return {
        "vision": vision,
        "visual_tokens": tokens,
        "most_visual_tokens": most,
        "any_size": bool(pinpoints),
    }


def _merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return vision sizes of an encoder that merges patches: Qwen2.5-VL's and Qwen3-VL's."""
    v = config["vision_config"]
    windows = "fullatt_block_indexes" in v
    merge = v.get("spatial_merge_size", 2)
    vision = {
        "kind": "merged",
        "hidden": v["hidden_size"],
        "intermediate": v["intermediate_size"],
        "layers": v["depth"],
        "patch_size": v["patch_size"],
        "merge": merge,
        "mlp_matrices": 3 if windows else 2,
        "full_layers": len(v["fullatt_block_indexes"]) if windows else v["depth"],
        "window": (v.get("window_size", 112) // v["patch_size"]) ** 2 if windows else 0,
        "mergers": 1 + len(v.get("deepstack_visual_indexes", ())),
    }
    width, height = (round(edge / (v["patch_size"] * merge)) for edge in PHOTO)
    return {
        "vision": vision,
        "visual_tokens": width * height,
        "most_visual_tokens": LARGEST_SORT,  # builds scale images down to so many
        "any_size": True,
    }


def _decoder(text: dict[str, Any]) -> dict[str, int]:
    """Return the decoder's sizes from ``text``, in which defaults are filled in.

    Qwen2.5-VL may have these keys at the top of its config.
    """
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    return {
        "num_layers": text["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": text.get("num_key_value_heads") or heads,
        "head_dim": text.get("head_dim") or hidden // heads,
        "hidden_size": hidden,
        "intermediate_size": text["intermediate_size"],
        "vocab_size": text["vocab_size"],
        "max_positions": text["max_position_embeddings"],
    }
