"""A model taken to pieces: what a family makes of a checkpoint, and all that later stages know of it.

A family (``models/<model_type>.py``) makes ``ModelParts``. ``graphs/assemble.py`` joins them with a method to
graphs. Nothing downstream knows the family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from foveate.export.networks.clip_text import TextEncoder
from foveate.export.networks.decoder import Decoder
from foveate.export.spec import BundleFiles, ClipFiles, ModelSpec, Weights
from foveate.runtime.bundle.licence import Licence

__all__ = ["ModelParts"]


@dataclass(frozen=True)
class ModelParts:
    """A model in pieces. Its modules are on the ``meta`` device: they have shapes and no memory.

    ``weights`` fills them. ``vision(taps)`` builds the vision module for a tuple of tap names. The module
    maps ``spec.vision.inputs`` to a dict with ``projected [tiles,N,D]`` and the taps. If the family offers
    ``layers``, ``vision`` also takes a ``StartMerging``; the dict then holds a pruner's outputs.
    ``projector()`` builds the module's last part alone, ``features [1,N,Dv]`` to ``projected``, for methods
    that act before it. ``decoder`` has ``layers``, ``norm`` and ``lm_head`` (see ``networks/decoder.py``).
    ``text_encoder`` maps ``input_ids [S,C]`` to ``clip_text [1,S,J]``; it is None without a CLIP checkpoint.
    ``files`` are copied into the bundle. ``open_clip`` opens the checkpoint of the text encoder, and may
    download it; it returns the files and licences that a bundle with the text encoder has besides.
    """

    spec: ModelSpec
    vision: Callable[..., nn.Module]
    projector: Callable[[], nn.Module]
    decoder: Decoder
    weights: Weights
    image: dict[str, Any]  # preprocessing settings, see runtime/images/processor.py
    prompt: dict[str, Any]  # chat format and stop ids, see runtime/text/chat_prompt.py
    licence: dict[str, Licence] = field(default_factory=dict)  # by role
    generation: dict[str, Any] = field(default_factory=dict)  # see settings/generation.py
    files: BundleFiles = field(default_factory=dict)
    text_encoder: TextEncoder | None = None
    open_clip: Callable[[], ClipFiles] | None = None
    source: dict[str, str] = field(default_factory=dict)  # model, revision, load format: for bundle.json
