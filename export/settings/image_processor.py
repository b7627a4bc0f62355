"""A bundle's image settings, made from a checkpoint's image processor.

``runtime/images/processor.py`` reads them.
The source is ``image_processor`` in ``processor_config.json`` (transformers 5), else
``preprocessor_config.json`` (transformers 4). The result is of kind ``clip``, ``anyres`` or ``windows``. A
missing or null key has the default of transformers' class, except that transformers 5 skips a step that is
null. A dummy source without files gets the values of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.trt.limits import LARGEST_SORT
from foveate.export.checkpoints.directory import Source
from foveate.export.settings.video_processor import video_settings

__all__ = ["image_settings", "refuse_max_pixels", "tile_settings", "window_settings"]

_CLIP = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Defaults of transformers' CLIPImageProcessor, whose numbers are OpenAI's."""
_QWEN_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""Default of transformers' Qwen2VLImageProcessor, in pixels per image."""
_QWEN_PUBLISHED = {"shortest_edge": 3136, "longest_edge": 12845056}
"""The sizes of the published Qwen2.5-VL checkpoints, in pixels per image."""


def image_settings(source: Source, side: int) -> dict[str, Any]:
    """Return settings of kind ``clip`` for images of ``side`` x ``side`` pixels.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one of another size.
    """
    found = _found(source, side)
    _demand_kind(found, source.label, "CLIPImageProcessor", "LlavaImageProcessor")
    for key in ("do_pad", "use_square_size"):
        if found.get(key):
            raise UserError(
                f"{source.label}: the image processor's {key} is not supported "
                f"| got {found[key]}, expected false | use a checkpoint with CLIP's image processing"
            )
    settings = _steps(_CLIP | found, source.label)
    if settings["size"] != [side, side]:
        raise UserError(
            f"{source.label}: image processor and vision tower disagree | got images of {settings['size']}, "
            f"expected {[side, side]} | repair crop_size and size in the processor's config"
        )
    return settings


def tile_settings(source: Source, side: int, pinpoints: list[list[int]]) -> dict[str, Any]:
    """Return settings of kind ``anyres`` for LLaVA-NeXT's tiles of ``side`` x ``side`` pixels.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one whose canvases
    differ from the model's ``pinpoints``.
    """
    found = _found(source, side)
    _demand_kind(found, source.label, "LlavaNextImageProcessor")
    steps = _steps(_CLIP | found, source.label)
    cut = found.get("image_grid_pinpoints", pinpoints)
    edge = steps.pop("shortest_edge", side), *steps.pop("resize", [side]), *steps.pop("size")
    if set(edge) != {side} or steps.pop("crop", [side, side]) != [side, side] or cut != pinpoints:
        raise UserError(
            f"{source.label}: image processor and model disagree | got tiles of {edge[0]} on {cut}, "
            f"expected {side} on {pinpoints} "
            "| repair size, crop_size and image_grid_pinpoints in the processor's config"
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
    """Return settings of kind ``windows`` for Qwen2-VL's image processor.

    ``patch`` is a patch's side in pixels, ``merge`` the side of a visual token in patches, ``frames`` the
    video frames per patch, ``window`` the side of an attention window in visual tokens. ``max_pixels`` lowers
    the processor's own limit; by default an image has no more tokens than every engine can sort.

    Raises UserError when the checkpoint has no image processor, one of another kind, or one with other
    patches, and for ``max_pixels`` out of the processor's range.
    """
    dummy = source.load_format == "dummy" and source.file("preprocessor_config.json") is None
    found = {"size": _QWEN_PUBLISHED} if dummy else _found(source, 0)
    _demand_kind(found, source.label, "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
    patches = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
    _demand_patches(found, patches, f"{source.label}: image processor")
    steps = _window_steps(found, source.label)
    low, high = _pixels(found, source.label)
    cell = (patch * merge) ** 2
    least = max(low, 2 * cell)  # video frames may have half the pixels, and need one token
    if max_pixels is not None and not least <= max_pixels <= high:
        raise UserError(
            f"wrong max-pixels | got {max_pixels}, expected {least} to {high} for {source.label} "
            f"({cell} per visual token) | change it or leave it out",
            code=2,
        )
    high = max_pixels or min(high, LARGEST_SORT * cell)
    video = video_settings(source, cell, high)
    if video.config is not None:
        where = f"{source.label}: video processor"
        _demand_patches(video.config, patches, where)
        if (theirs := _window_steps(video.config, where)) != steps:
            raise UserError(
                f"{where} and image processor disagree | got {theirs} for videos, expected {steps} "
                "| give both the same resample, rescale_factor, image_mean and image_std"
            )
    return steps | {
        "kind": "windows",
        "patch": patch,
        "merge": merge,
        "frames": frames,
        "window": window,
        "min_pixels": low,
        "max_pixels": high,
        "video": video.limits | {"tokens_per_second": tokens_per_second},
    }


def refuse_max_pixels(source: Source, max_pixels: int | None) -> None:
    """Raise UserError (code 2) if ``max_pixels`` is set; images of this model have a fixed size."""
    if max_pixels is not None:
        raise UserError(
            f"images of {source.label} have a fixed size | got --max-pixels {max_pixels} | leave it out",
            code=2,
        )


def _found(source: Source, side: int) -> dict[str, Any]:
    """Return the checkpoint's image processor config without nulls, except nulls of processing steps.

    A dummy without files gets the size alone. Raises UserError when there is no config.
    """
    found = (source.json("processor_config.json") or {}).get("image_processor")
    found = source.json("preprocessor_config.json") if found is None else found
    if found is None and source.load_format == "dummy":
        found = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if found is None:
        raise UserError(
            f"{source.label} has no settings for images "
            "| expected preprocessor_config.json or processor_config.json "
            "| save them with transformers' AutoProcessor(...).save_pretrained"
        )
    steps = _CLIP.keys() - {"size"}
    return {key: value for key, value in found.items() if value is not None or key in steps}


def _demand_kind(found: dict[str, Any], label: str, *kinds: str) -> None:
    """Raise UserError for another class. The endings Fast and Pil name implementations of the same class."""
    kind = found.get("image_processor_type") or found.get("feature_extractor_type", kinds[0])
    kind = kind.replace("FeatureExtractor", "ImageProcessor")
    if kind.removesuffix("Fast").removesuffix("Pil") not in kinds:
        raise UserError(
            f"{label}: this image processor is not supported | got {kind}, expected {' or '.join(kinds)} "
            "| use a checkpoint with such image processing"
        )


def _demand_patches(found: dict[str, Any], patches: dict[str, int], where: str) -> None:
    got = {name: found.get(name, value) for name, value in patches.items()}
    if got != patches:
        raise UserError(
            f"{where} and vision encoder disagree | got {got}, expected {patches} "
            "| repair the processor's config"
        )


def _pixels(found: dict[str, Any], label: str) -> tuple[int, int]:
    """Return the smallest and largest number of pixels of an image.

    ``min_pixels`` and ``max_pixels`` override ``size``. Raises UserError when both are missing.
    """
    size = found.get("size", _QWEN_SIZE)
    size = size if isinstance(size, dict) else {}
    least = found.get("min_pixels", size.get("shortest_edge"))
    most = found.get("max_pixels", size.get("longest_edge"))
    if type(least) is int and type(most) is int and min(least, most) > 0:
        return least, most
    raise UserError(
        f"{label}: cannot tell how large images may be "
        f"| got size {found.get('size')}, expected shortest_edge and longest_edge, in pixels "
        "| repair size in the processor's config"
    )


def _window_steps(found: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the processing steps other than resizing, which these processors always do."""
    if not found.get("do_resize", True):
        raise UserError(
            f"{where}: do_resize is not supported | got false, expected true | repair the processor's config"
        )
    config = {**_CLIP, **found, "size": {"height": 0, "width": 0}, "do_center_crop": False}
    return {key: value for key, value in _steps(config, where).items() if key not in ("size", "resize")}


def _steps(config: dict[str, Any], label: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"kind": "clip"}
    if config["do_resize"]:
        size = _size(config["size"], config.get("default_to_square", False))
        if size.keys() == {"shortest_edge"}:
            settings["shortest_edge"] = size["shortest_edge"]
        elif size.keys() == {"height", "width"}:
            settings["resize"] = settings["size"] = [size["height"], size["width"]]
        else:
            raise UserError(
                f"{label}: cannot resize images to {config['size']} "
                "| expected shortest_edge, or height and width "
                "| repair size in the processor's config"
            )
        settings["resample"] = _number(config, "resample", label)
    if config["do_center_crop"]:
        crop = _size(config["crop_size"], True)
        if crop.keys() != {"height", "width"}:
            raise UserError(
                f"{label}: cannot crop images to {config['crop_size']} | expected height and width "
                "| repair crop_size in the processor's config"
            )
        settings["crop"] = settings["size"] = [crop["height"], crop["width"]]
    if config["do_rescale"]:
        settings["rescale"] = _number(config, "rescale_factor", label)
    if config["do_normalize"]:
        settings["mean"], settings["std"] = (
            _channels(config, key, label) for key in ("image_mean", "image_std")
        )
    settings.setdefault("size", None)
    return settings


def _size(size: Any, square: bool) -> dict[str, Any]:
    """Return a size given as a number, a pair or a dict as a dict without nulls."""
    if isinstance(size, dict):
        return {key: value for key, value in size.items() if value is not None}
    if isinstance(size, list):
        return dict(zip(("height", "width"), size, strict=False))
    return {"height": size, "width": size} if square else {"shortest_edge": size}


def _number(config: dict[str, Any], key: str, label: str) -> Any:
    if type(config[key]) not in (int, float):
        raise UserError(
            f"{label}: {key} is not supported | got {config[key]}, expected a number "
            "| repair the processor's config"
        )
    return config[key]


def _channels(config: dict[str, Any], key: str, label: str) -> list[float]:
    value = config[key]
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(each, int | float) for each in values):
        raise UserError(
            f"{label}: {key} is not supported | got {value}, expected three numbers "
            "| repair the processor's config"
        )
    return list(values)
