"""CLIP's vision encoder with taps and a projector, and the map from its features to the joint space.

Layers follow CLIP in Hugging Face transformers. A tap computes its value again from the queries and keys of
its layer, with a softmax in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.engines.errors import UserError, unknown
from foveate.export.networks.clip_layers import Layer, activation_of
from foveate.export.networks.decoder import Linear
from foveate.export.spec import ClipVisionSpec, StartMerging

__all__ = ["TAPS", "JointHead", "Projector", "Vision"]

TAPS = (
    "features",
    "cls_feature",
    "cls_attention",
    "cls_attention_heads",
    "received_attention",
    "keys",
    "hidden",
    "clip_image",
)
"""Taps of CLIP's vision encoder. All but ``features``, ``cls_feature`` and ``clip_image`` have a layer
number."""


class PatchEmbeddings(nn.Module):
    def __init__(self, spec: ClipVisionSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(width), requires_grad=False)
        self.patch_embedding = nn.Conv2d(3, width, spec.patch_size, spec.patch_size, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(spec.num_tokens + 1, width), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [B,3,H,W] to rows [B,N+1,Dv], the class token first."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding


class Tower(nn.Module):
    """The first ``spec.depth`` layers of the checkpoint, which are those that run."""

    def __init__(self, spec: ClipVisionSpec) -> None:
        super().__init__()
        width, eps = spec.hidden_size, spec.layer_norm_eps
        self.embeddings = PatchEmbeddings(spec)
        self.pre_layernorm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            Layer(width, spec.intermediate_size, spec.num_heads, spec.activation, eps)
            for _ in range(spec.depth)
        )


class Projector(nn.Module):
    """Two linear layers from the vision encoder's width to the decoder's."""

    def __init__(self, inputs: int, outputs: int, activation: str, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = Linear(inputs, outputs, bias)
        self.linear_2 = Linear(outputs, outputs, bias)
        self.activation = activation_of(activation)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B,N,Dv] to visual tokens [B,N,D]."""
        return self.linear_2(self.activation(self.linear_1(features)))


class JointHead(nn.Module):
    """The map from the vision encoder's features to the joint image-text space."""

    def __init__(self, spec: ClipVisionSpec) -> None:
        super().__init__()
        assert spec.joint_size is not None
        self.post_layernorm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.visual_projection = Linear(spec.hidden_size, spec.joint_size)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B,N,Dv] to the joint space [B,N,J]."""
        return self.visual_projection(self.post_layernorm(features))


class Vision(nn.Module):
    """The graph ``vision_encoder``: layers, projector and the requested ``taps``.

    Raises UserError (code 2) for a tap that CLIP does not offer, or a layer that does not run. With
    ``merging`` there are no taps, and the outputs are those of a pruner.
    """

    def __init__(
        self,
        spec: ClipVisionSpec,
        projector: Projector,
        taps: tuple[str, ...] = (),
        merging: StartMerging | None = None,
    ) -> None:
        super().__init__()
        for tap in taps:
            _check(tap, spec)
        assert not (taps and merging)
        self.taps, self.merging = taps, merging
        self.tower = Tower(spec)
        self.projector = projector
        self.joint = JointHead(spec) if "clip_image" in taps else None

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Map pixel_values [B,3,H,W] to ``projected [B,N,D]`` and the taps, in the order of ``self.taps``."""
        hidden = self.tower.pre_layernorm(self.tower.embeddings(pixel_values))
        if self.merging is not None:
            return self._merged(hidden, self.merging)
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.tower.layers):
            hidden, query, key = layer(hidden)
            for tap in self.taps:
                offer, _, number = tap.partition(".")
                if number == str(index):
                    found[tap] = hidden[:, 1:] if offer == "hidden" else _attention_tap(offer, query, key)
        features = hidden[:, 1:]
        found |= {"projected": self.projector(features), "features": features, "cls_feature": hidden[:, :1]}
        if self.joint is not None:
            found["clip_image"] = self.joint(features)
        return {name: found[name] for name in ("projected", *self.taps)}

    def _merged(self, hidden: Tensor, start: StartMerging) -> dict[str, Tensor]:
        merging = start(hidden.shape[0], hidden.shape[1] - 1, hidden.device)
        for layer in self.tower.layers:
            bias = merging.bias()
            hidden = layer(hidden, None if bias is None else bias.to(hidden.dtype), merging.merge)[0]
        features, kept, count, owner = merging.finish(hidden[:, 1:])
        return {"tokens": self.projector(features), "kept": kept, "count": count, "owner": owner}


def _check(tap: str, spec: ClipVisionSpec) -> None:
    offer, dot, number = tap.partition(".")
    if offer not in TAPS:
        raise unknown("tap of a CLIP tower", offer, TAPS)
    if offer in ("features", "cls_feature", "clip_image"):
        fits = not dot
    else:
        fits = number.isdecimal() and int(number) < spec.depth
    if not fits:
        raise UserError(
            f"no tap {tap} | the tower runs layers 0..{spec.depth - 1} | name another layer", code=2
        )


def _attention_tap(offer: str, query: Tensor, key: Tensor) -> Tensor:
    """Compute a tap, without the class token, from query and key [B,H,N+1,dk], class token first."""
    if offer == "keys":
        return key[:, :, 1:].mean(1)
    rows = query if offer == "received_attention" else query[:, :, :1]
    scores = (rows * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = scores.float().softmax(-1)[..., 1:]
    if offer == "received_attention":
        weights = weights.mean((1, 2))
    elif offer == "cls_attention_heads":
        weights = weights[:, :, 0]
    else:
        weights = weights[:, :, 0].mean(1)
    return weights.to(query.dtype)
