"""The joint image-text space of CLIP: projections and text tower, read from the CLIP checkpoint when needed.

A LLaVA checkpoint holds the vision tower of a CLIP model without its projections and its text tower. Methods
that compare an image with a text take these from that CLIP's own checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch

from foveate.engines.errors import UserError
from foveate.export.checkpoints import find as sources
from foveate.export.checkpoints import licence
from foveate.export.checkpoints.directory import Source
from foveate.export.checkpoints.module_weights import entries
from foveate.export.checkpoints.random_weights import byte_tokenizer
from foveate.export.checkpoints.tensor_files import Folder
from foveate.export.keys.checkpoint_keys import check_clip
from foveate.export.networks.clip_text import TextEncoder, TextSpec
from foveate.export.networks.clip_vision import JointHead
from foveate.export.settings.hf_config import Config, clip_vision_spec
from foveate.export.settings.vocabulary import refuse_tokens_beyond
from foveate.export.spec import BundleFiles, ClipFiles, ClipVisionSpec, Weights
from foveate.runtime.bundle.licence import Licence

__all__ = ["JointSpace", "check_tower", "joint_size"]

_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
"""Defaults of Hugging Face's CLIPTextConfig."""

_TEXT_NAMES = (
    ("embeddings.token_embedding", ("text_model.embeddings.token_embedding.weight",)),
    ("embeddings.position_embedding", ("text_model.embeddings.position_embedding.weight",)),
    ("layers.", ("text_model.encoder.layers.",)),
    ("final_layer_norm.", ("text_model.final_layer_norm.",)),
    ("text_projection.", ("text_projection.",)),
)
_HEAD_NAMES = (
    ("post_layernorm.", ("vision_model.post_layernorm.",)),
    ("visual_projection.", ("visual_projection.",)),
)


_UNREAD = {
    r"vision_model\..*": "the tower is the checkpoint's own",
    r"logit_scale": "methods scale by themselves",
}


_WHERE = "the config of the tower's CLIP"


def joint_size(config: dict[str, Any]) -> int:
    """Return the width of the joint space. Raises UserError if it is no size."""
    return Config(config, {}, _WHERE).size("projection_dim", 512)


def check_tower(source: Source, vision: ClipVisionSpec) -> None:
    """Raise UserError when ``source`` is no CLIP checkpoint, or has another tower than ``vision``."""
    if source.config.get("model_type") != "clip":
        raise UserError(
            f"{source.label} is no CLIP checkpoint | got model_type {source.config.get('model_type')}, "
            "expected clip | name the CLIP checkpoint of the vision tower with --clip"
        )
    check_clip(source)
    parts = (source.config.get(key) or {} for key in ("vision_config", "vision_config_dict"))
    values = {key: value for part in parts for key, value in part.items()}
    theirs = clip_vision_spec(values, 1, None, source.label)
    for field in ("hidden_size", "image_size", "patch_size"):
        ours, found = getattr(vision, field), getattr(theirs, field)
        if ours != found:
            raise UserError(
                f"{source.label} is not the CLIP of this vision tower | {field} is {found}, expected {ours} "
                "| name another one with --clip"
            )


class JointSpace:
    """The joint space: ``text_encoder`` on the meta device, and its weights, which are read when needed.

    ``config`` is the CLIP checkpoint's config. ``source`` is that checkpoint, or a hub id that is downloaded
    at the first read. Raises UserError for a checkpoint that is not the CLIP of ``vision``.
    """

    def __init__(self, config: dict[str, Any], vision: ClipVisionSpec, source: Source | str) -> None:
        self._source, self._vision = source, vision
        self._opened: tuple[Weights, Any] | None = None
        self._folders: list[Folder] = []
        if not isinstance(source, str):
            check_tower(source, vision)
        with torch.device("meta"):
            self.text_encoder = TextEncoder(_text_spec(config))
            head = JointHead(vision)
        self._entries = entries(self.text_encoder, "text_encoder.", _TEXT_NAMES)
        self._entries |= entries(head, "vision_encoder.joint.", _HEAD_NAMES)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor of the checkpoint."""
        return self.open()[0].get(name)

    def open(self) -> tuple[Weights, Any]:
        """Return the weights and the tokenizer file (a path, or bytes for a dummy).

        Raises UserError when the checkpoint is missing, has no tokenizer or does not fit.
        """
        if self._opened is None:
            source = self._source
            if isinstance(source, str):
                source = sources.find(source)
                check_tower(source, self._vision)
            self._opened = source.weights(self._entries, _UNREAD), self._tokenizer(source)
            self._folders = list(source.folders.values())
        return self._opened

    def clip_files(self) -> ClipFiles:
        """Open the checkpoint and return the files and the licence that a bundle takes from it."""
        files: BundleFiles = {"clip_tokenizer.json": self.open()[1]}
        licences: dict[str, Licence] = {}
        for folder in self._folders:
            licences["clip"], found = licence.of(folder, "clip")
            files |= found
        return ClipFiles(files, licences)

    def _tokenizer(self, source: Source) -> Any:
        if source.load_format == "dummy":
            size = self.text_encoder.spec.vocab_size
            special = {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
            return byte_tokenizer(size, special, begin="<|startoftext|>", end="<|endoftext|>")
        path = source.file("tokenizer.json")
        if path is None:
            raise UserError(
                f"{source.label} has no tokenizer.json | expected the fast tokenizer of a CLIP checkpoint "
                "| save it with transformers' AutoTokenizer(...).save_pretrained"
            )
        refuse_tokens_beyond(self.text_encoder.spec.vocab_size, path.read_bytes(), source.label)
        return path


def _text_spec(config: dict[str, Any]) -> TextSpec:
    # Of old configs: it replaces text_config's keys, and its missing keys have their defaults.
    override = config.get("text_config_dict")
    text = _TEXT | (config.get("text_config") or {}) | (_TEXT | override if override else {})
    sizes = Config(text, {}, f"{_WHERE}: text_config")
    return TextSpec(
        hidden_size=sizes.size("hidden_size"),
        intermediate_size=sizes.size("intermediate_size"),
        num_layers=sizes.size("num_hidden_layers"),
        num_heads=sizes.size("num_attention_heads"),
        vocab_size=sizes.size("vocab_size"),
        context_length=sizes.size("max_position_embeddings"),
        activation=text["hidden_act"],
        layer_norm_eps=text["layer_norm_eps"],
        joint_size=joint_size(config),
        eos_id=text["eos_token_id"],
    )
