"""A checkpoint's processor files to the settings that travel in the bundle: pictures, chat format, stop ids.

In: a source (``preprocessor_config.json`` or ``processor_config.json``, ``tokenizer.json``, a chat template). Out: the
dicts that ``runtime.image`` and ``runtime.prompt`` document. A dummy source has no files and gets LLaVA-1.5's.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from foveate.engines.errors import UserError
from foveate.engines.trt_build import LARGEST_SORT
from foveate.export import chat
from foveate.export.checkpoint import Source

__all__ = [
    "image_settings",
    "prompt_settings",
    "refuse_max_pixels",
    "tile_settings",
    "tokenizer_json",
    "window_settings",
]

_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_CLIP = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _MEAN,
    "image_std": _STD,
}
"""Defaults of Hugging Face's CLIPImageProcessor, whose numbers are OpenAI's."""


def image_settings(source: Source, side: int) -> dict[str, Any]:
    """Settings for ``runtime.image`` that give pictures of ``side`` x ``side`` pixels.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one of another size.
    """
    found = _found(source, side)
    kind = found.get("image_processor_type") or "CLIPImageProcessor"
    if not kind.startswith("CLIPImageProcessor") or found.get("do_pad"):
        got = f"{kind}{' with do_pad' if found.get('do_pad') else ''}"
        raise UserError(
            f"{source.label}: this image processor is not supported | got {got}, expected CLIPImageProcessor "
            "without padding | use a checkpoint with CLIP's image processing"
        )
    settings = _steps(_CLIP | found, source.label)
    if settings["size"] != [side, side]:
        raise UserError(
            f"{source.label}: image processor and vision tower disagree | got pictures of {settings['size']}, "
            f"expected {[side, side]} | repair crop_size and size in the processor's config"
        )
    return settings


def tile_settings(source: Source, side: int, pinpoints: list[list[int]]) -> dict[str, Any]:
    """Settings of kind ``anyres`` for tiles of ``side`` x ``side`` pixels, of LLaVA-NeXT's image processor.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one that cuts otherwise than
    ``pinpoints``, by which the model puts the tiles together.
    """
    found = _found(source, side)
    kind = found.get("image_processor_type") or "LlavaNextImageProcessor"
    if not kind.startswith("LlavaNextImageProcessor"):
        raise UserError(
            f"{source.label}: this image processor is not supported | got {kind}, expected LlavaNextImageProcessor "
            "| use a checkpoint with LLaVA-NeXT's image processing"
        )
    steps = _steps(_CLIP | found, source.label)
    cut = found.get("image_grid_pinpoints", pinpoints)
    edge = steps.pop("shortest_edge", side), *steps.pop("resize", [side]), *steps.pop("size")
    if set(edge) != {side} or steps.pop("crop", [side, side]) != [side, side] or cut != pinpoints:
        raise UserError(
            f"{source.label}: image processor and model disagree | got tiles of {edge[0]} on {cut}, expected "
            f"{side} on {pinpoints} | repair size, crop_size and image_grid_pinpoints in the processor's config"
        )
    return steps | {"kind": "anyres", "tile": side, "pinpoints": pinpoints}


def window_settings(
    source: Source,
    patch: int,
    merge: int,
    frames: int,
    window: int,
    tokens_per_second: float,
    max_pixels: int | None = None,
) -> dict[str, Any]:
    """Settings of kind ``windows``, of Qwen2-VL's image processor, for an encoder with such patches and windows. Videos are
    those of its video processor, with what its authors' tools give all frames together: 0.9 of what a picture may have.
    ``max_pixels`` stands for the processor's own, but no more; by default it is as many tokens as every engine sorts.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one with other patches, and for
    ``max_pixels`` out of the processor's range.
    """
    dummy = source.load_format == "dummy" and source.file("preprocessor_config.json") is None
    found = {} if dummy else _found(source, 0)
    kind = found.get("image_processor_type") or "Qwen2VLImageProcessor"
    if not kind.startswith("Qwen2VLImageProcessor"):
        raise UserError(
            f"{source.label}: this image processor is not supported | got {kind}, expected Qwen2VLImageProcessor "
            "| use a checkpoint with Qwen2-VL's image processing"
        )
    names = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
    got = {name: found.get(name, value) for name, value in names.items()}
    if got != names:
        raise UserError(
            f"{source.label}: image processor and vision encoder disagree | got {got}, expected {names} "
            "| repair the processor's config"
        )
    size = found.get("size", {})
    config = {**_CLIP, **found, "size": {"height": 0, "width": 0}, "do_center_crop": False}
    steps = {
        key: value for key, value in _steps(config, source.label).items() if key not in ("size", "resize")
    }
    low, high = (
        found.get(name, size.get(edge, default))
        for name, edge, default in (
            ("min_pixels", "shortest_edge", 3136),
            ("max_pixels", "longest_edge", 12845056),
        )
    )
    video, cell = source.json("video_preprocessor_config.json") or {}, (patch * merge) ** 2
    least = max(low, 2 * cell)  # a video's frame has half
    if max_pixels is not None and not least <= max_pixels <= high:
        raise UserError(
            f"wrong max-pixels | got {max_pixels}, expected {least} to {high} for {source.label}, "
            f"{cell} for each visual token | change it or leave it out",
            code=2,
        )
    high = max_pixels or min(high, LARGEST_SORT * cell)
    edges = video.get("size") or {}
    return steps | {
        "kind": "windows",
        "patch": patch,
        "merge": merge,
        "frames": frames,
        "window": window,
        "min_pixels": low,
        "max_pixels": high,
        "video": {
            "fps": video.get("fps", 2),
            "min_frames": video.get("min_frames", 4),
            "max_frames": video.get("max_frames", 768),
            "min_pixels": min(edges.get("shortest_edge", 128 * cell), high // 2),
            "max_pixels": min(edges.get("longest_edge", 768 * cell), high),
            "total_pixels": high * 9 // 10,
            "tokens_per_second": tokens_per_second,
        },
    }


def refuse_max_pixels(source: Source, max_pixels: int | None) -> None:
    """Raises UserError (code 2) when a limit is asked for where pictures have a fixed size."""
    if max_pixels is not None:
        raise UserError(
            f"pictures of {source.label} have a fixed size | got --max-pixels {max_pixels} | leave it out",
            code=2,
        )


def _found(source: Source, side: int) -> dict[str, Any]:
    """What the checkpoint says of its image processor, nulls left out; of a dummy that says nothing, its size alone."""
    found = (source.json("processor_config.json") or {}).get("image_processor")
    found = found or source.json("preprocessor_config.json")
    if found is None and source.load_format == "dummy":
        found = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if found is None:
        raise UserError(
            f"{source.label} says nothing about its pictures | expected preprocessor_config.json or "
            "processor_config.json | save them with transformers' AutoProcessor(...).save_pretrained"
        )
    return {key: value for key, value in found.items() if value is not None}


def _steps(config: dict[str, Any], label: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"kind": "clip"}
    if config["do_resize"]:
        size = config["size"]
        if isinstance(size, int) or "shortest_edge" in size:
            settings["shortest_edge"] = size if isinstance(size, int) else size["shortest_edge"]
        elif {"height", "width"} <= size.keys():
            settings["resize"] = settings["size"] = [size["height"], size["width"]]
        else:
            raise UserError(
                f"{label}: cannot resize pictures to {size} | expected shortest_edge, or height and width "
                "| repair size in the processor's config"
            )
        settings["resample"] = config["resample"]
    if config["do_center_crop"]:
        crop = config["crop_size"]
        crop = [crop, crop] if isinstance(crop, int) else [crop["height"], crop["width"]]
        settings["crop"] = settings["size"] = crop
    if config["do_rescale"]:
        settings["rescale"] = config["rescale_factor"]
    if config["do_normalize"]:
        settings["mean"], settings["std"] = list(config["image_mean"]), list(config["image_std"])
    settings.setdefault("size", None)
    return settings


def tokenizer_json(source: Source) -> bytes:
    """The checkpoint's ``tokenizer.json``. Raises UserError when it has none."""
    path = source.file("tokenizer.json")
    if path is None:
        raise UserError(
            f"{source.label} has no tokenizer.json | expected the fast tokenizer's file "
            "| save it with transformers' AutoTokenizer(...).save_pretrained"
        )
    return path.read_bytes()


def prompt_settings(
    source: Source,
    tokenizer: bytes,
    image_token_id: int,
    eos: Any,
    pad_id: int | None,
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings for ``runtime.prompt``. ``default`` is the chat format of a checkpoint that has none; ``eos`` is the config's
    end id or list of them, which the checkpoint's ``generation_config.json`` overrules. Raises UserError when the chat
    template cannot be put into pieces."""
    try:
        known = Tokenizer.from_str(tokenizer.decode())
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(
            f"{source.label}: tokenizer.json is damaged | {error}, expected a fast tokenizer's file "
            "| copy or download it again"
        ) from error
    image_token = known.id_to_token(image_token_id)
    if image_token is None:
        raise UserError(
            f"{source.label}: no token {image_token_id} | config.json names it as the image token, tokenizer.json "
            "does not have it | take both from the same checkpoint"
        )
    generation = source.json("generation_config.json") or {}
    stop = generation.get("eos_token_id", eos)
    opening = known.encode("").ids
    bos_id = opening[0] if opening else None
    bos = None if bos_id is None else known.id_to_token(bos_id)
    pieces = chat.pieces(source, image_token, bos, default)
    return pieces | {
        "image_token": image_token,
        "image_token_id": image_token_id,
        "bos_id": bos_id,
        "stop_ids": list(stop) if isinstance(stop, list) else [stop],
        "pad_id": pad_id,
    }
