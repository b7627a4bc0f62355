"""Model families: one file each, named after Hugging Face's ``model_type`` and found by it.

A family has ``CHECKPOINTS`` (CLI name -> hub id), ``CONFIGS`` (CLI name -> config of the true size, for
dummies), ``KEYS`` (the tables of its settings files), ``load(source, *, clip=None, max_pixels=None) -> Parts`` and ``tiny() -> Parts``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from foveate.engines.errors import UserError, unknown
from foveate.export.adapters.merged import Adapted
from foveate.export.checkpoints import find as sources
from foveate.export.checkpoints import licence
from foveate.export.checkpoints.model_names import checkpoints, families, require
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.keys import checkpoint_keys, settings_types
from foveate.export.settings import generation
from foveate.export.spec import Parts

__all__ = ["checkpoints", "families", "family", "load"]


def family(model_type: str) -> ModuleType:
    """The family's module. Raises UserError for a model_type that no file here is named after."""
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
) -> Parts:
    """The Parts of a CLI name, a directory in Hugging Face's format, or a hub id (``org/name``).

    ``load_format`` "dummy" gives random weights of the true size; for a CLI name nothing is downloaded then.
    ``clip`` names the CLIP checkpoint of the vision tower, ``max_pixels`` is the most that a picture may have
    where pictures are of any size (default: as many as every dialect takes). ``adapter`` is a LoRA adapter's
    directory or hub id (``sources.find``). Raises UserError.
    """
    if adapter is not None and load_format == "dummy":
        raise UserError(
            f"random weights take no adapter | got --adapter {adapter} | leave it or --load-format out",
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
    answers = generation.defaults(source)  # what is refused is said before any long work
    parts = family(model_type).load(source, clip=clip, max_pixels=max_pixels)
    parts.generation = answers
    if isinstance(source, Adapted):
        found = source.adapter
        parts.source |= {"adapter": found.folder.label, "adapter_revision": found.revision}
    for role, folder in source.folders.items():
        parts.licence[role], files = licence.of(folder, role)
        parts.files |= files
    return parts
