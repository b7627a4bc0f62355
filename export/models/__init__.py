"""Model families: one file each, named after Hugging Face's ``model_type`` and found by it.

A family's file has

* ``CHECKPOINTS``: a hub id for each name on the command line,
* ``CONFIGS``: a config of the true size for each name, for dummies,
* ``KEYS``: the tables of its settings files,
* ``load(source, *, clip=None, max_pixels=None) -> ModelParts``,
* ``tiny() -> ModelParts``: a small random model for tests.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

from foveate.engines.errors import UserError, unknown
from foveate.export.checkpoints import find as sources
from foveate.export.checkpoints import licence
from foveate.export.checkpoints.adapters.merged import Adapted
from foveate.export.checkpoints.model_names import checkpoints, families, require
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.keys import checkpoint_keys, settings_types
from foveate.export.model_parts import ModelParts
from foveate.export.settings import generation

__all__ = ["checkpoints", "families", "family", "load"]


def family(model_type: str) -> ModuleType:
    """Return the family's module. Raises UserError for an unknown model_type."""
    if model_type not in families():
        raise unknown("model family", model_type, families())
    return importlib.import_module(f"{__name__}.{model_type}")


def load(
    model: str,
    *,
    load_format: str = "auto",
    clip: str | None = None,
    max_pixels: int | None = None,
    adapter: str | None = None,
) -> ModelParts:
    """Return the parts of a CLI name, a directory in Hugging Face's format, or a hub id (``org/name``).

    ``load_format`` "dummy" gives random weights of the true size; a CLI name is then loaded without a
    download. ``clip`` names the CLIP checkpoint of the vision tower. ``max_pixels`` is the largest number of
    pixels of an image, for models that take images of any size (default: the most that every dialect
    supports). ``adapter`` is the directory or hub id of a LoRA adapter (see ``checkpoints.find``). Raises
    UserError.
    """
    if adapter is not None and load_format == "dummy":
        raise UserError(
            f"random weights take no adapter | got --adapter {adapter} "
            "| leave out --adapter or --load-format",
            code=2,
        )
    if load_format not in ("auto", "dummy"):
        raise unknown("load format", load_format, ["auto", "dummy"])
    require(model)
    known = checkpoints()
    if model not in known:
        source = sources.find(model, weights=load_format == "auto", adapter=adapter)
        if load_format == "dummy":
            source = Dummy(source.label, source.config, source)
    elif load_format == "dummy":
        source = Dummy(model, family(known[model]).CONFIGS[model])
    else:
        source = sources.find(family(known[model]).CHECKPOINTS[model], adapter=adapter)
    model_type = source.config.get("model_type")
    if model_type not in families():
        raise UserError(
            f"{source.label} is of a family that is not supported | got model_type {model_type}, expected "
            f"{' or '.join(families())} | use a checkpoint of one of these"
        )
    settings_types.check(source)
    checkpoint_keys.check(source, family(model_type).KEYS)
    answers = generation.defaults(source)  # refuses settings before any long work
    parts = family(model_type).load(source, clip=clip, max_pixels=max_pixels)
    origin, licences, files = dict(parts.source), dict(parts.licence), dict(parts.files)
    if isinstance(source, Adapted):
        found = source.adapter
        origin |= {"adapter": found.folder.label, "adapter_revision": found.revision}
    for role, folder in source.folders.items():
        licences[role], more = licence.of(folder, role)
        files |= more
    return replace(parts, generation=answers, source=origin, licence=licences, files=files)
