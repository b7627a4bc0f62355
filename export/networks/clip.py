"""CLIP: the vision encoder with taps and a projector, and the text encoder of the joint image-text space.

Layers follow CLIP in Hugging Face transformers. Weight matrices are stored ``[in, out]``
(``decoder.Linear``). Every layer uses fused attention. A tap computes its value again from the queries and
keys of its layer, with a softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engines.errors import UserError, unknown
from foveate.export.networks.decoder import Linear
from foveate.export.spec import ClipVisionSpec, StartMerging

__all__ = ["ACTIVATIONS", "TAPS", "JointHead", "Projector", "TextEncoder", "TextSpec", "Vision"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}
"""Activation functions by their names in Hugging Face's configs."""

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


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width, bias=True)
        self.k_proj = Linear(width, width, bias=True)
        self.v_proj = Linear(width, width, bias=True)
        self.out_proj = Linear(width, width, bias=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B,T,W] to the mixed rows [B,T,W].

        Also returns queries and keys [B,H,T,W/H], with bias and unscaled.
        """
        batch, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width)), query, key


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner, bias=True)
        self.fc2 = Linear(inner, width, bias=True)
        self.activation = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, activation: str, eps: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, inner, activation)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, merge: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows, queries and keys of the layer.

        ``mask`` as in ``scaled_dot_product_attention``. ``merge`` gets the rows after the attention and their
        keys, and returns fewer rows.
        """
        mixed, query, key = self.self_attn(self.layer_norm1(x), mask)
        x = x + mixed
        if merge is not None:
            x = merge(x, key)
        return x + self.mlp(self.layer_norm2(x)), query, key


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
        self.activation = _activation(activation)

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


@dataclass(frozen=True)
class TextSpec:
    """Sizes of CLIP's text encoder. ``eos_id`` 2 marks an old config, in which the highest id ends a text."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    context_length: int
    activation: str
    layer_norm_eps: float
    joint_size: int
    eos_id: int


class TextEmbeddings(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        shape = spec.vocab_size, spec.hidden_size
        self.token_embedding = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.position_embedding = nn.Parameter(
            torch.empty(spec.context_length, spec.hidden_size), requires_grad=False
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.token_embedding) + self.position_embedding


class TextEncoder(nn.Module):
    """The graph ``text_encoder``, which maps every text to one point of the joint space."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = TextEmbeddings(spec)
        self.layers = nn.ModuleList(
            Layer(
                spec.hidden_size,
                spec.intermediate_size,
                spec.num_heads,
                spec.activation,
                spec.layer_norm_eps,
            )
            for _ in range(spec.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.text_projection = Linear(spec.hidden_size, spec.joint_size)

    @property
    def context_length(self) -> int:
        """Number of token ids of a text, padding included."""
        return self.spec.context_length

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map input_ids [S,C] int64, each row with an end token, to clip_text [1,S,J], not normalised."""
        order = torch.arange(self.context_length, device=input_ids.device)
        mask = order[None, :] <= order[:, None]  # [C,C]
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden, _, _ = layer(hidden, mask)
        ends = (self._end(input_ids, order)[:, None] == order)[..., None]  # [S,C,1]
        pooled = torch.where(ends, hidden, 0.0).sum(1)
        return self.text_projection(self.final_layer_norm(pooled))[None]

    def _end(self, input_ids: Tensor, order: Tensor) -> Tensor:
        """Return the place of the first end token: [S]. A minimum over places avoids an ArgMax with ties."""
        last = input_ids.amax(1, keepdim=True) if self.spec.eos_id == 2 else self.spec.eos_id
        return torch.where(input_ids == last, order, self.context_length).amin(1)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
