"""The vision encoder of Qwen2.5-VL: one graph for images of every size.

The four patches of a token stay together throughout, and tokens are ordered by window, so most of the work is
on plain rows. The host makes index tensors for each image (``runtime.images.windows``): the row and
column of each token for the rotary embedding, and the windows of 4 x 4 tokens. All layers but a few attend
within windows. Windows form a batch, and windows at the image's edges are padded. No mask has a number per
pair of patches of the whole image.

Layers follow Hugging Face transformers. Every layer uses fused attention. A tap computes its value again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engines.errors import UserError, unknown
from foveate.export.networks.decoder import Linear, RMSNorm
from foveate.export.networks.onnx_ops import loop, rotary_embedding
from foveate.export.networks.qwen_vision_spec import GROUP, WindowSpec

__all__ = ["TAPS", "Merger", "Vision"]

TAPS = ("features", "received_attention", "hidden")
"""Taps of the vision encoder.

``features`` are the four patches of a token side by side, after the last norm. The others have a layer number
and are means of the four patches. ``received_attention`` exists in layers that attend to the whole image."""

_EPS = 1e-6
# tokens whose attention is computed together; a block of scores is 4 * 32 by the number of patches, per head
_QUERIES = 32


class Windows:
    """The windows of an image's tokens.

    ``slots [W,S]`` is the token in each slot of each window, -1 for none. ``back [T]`` is the slot of each
    token.
    """

    def __init__(self, slots: Tensor, back: Tensor) -> None:
        self.shape = slots.shape
        self.slots, self.back = slots.clamp(min=0).reshape(-1), back
        patches = (slots >= 0)[:, :, None].expand(-1, -1, GROUP).reshape(slots.shape[0], -1)  # [W,4S]
        # expanded, since engines want a number for every pair of patches in a window
        self.mask = patches[:, None, None, :].expand(-1, 1, patches.shape[1], -1)

    def apart(self, rows: Tensor) -> Tensor:
        """Arrange rows by windows, with padding: ``[T,4,C]`` -> ``[W,4S,C]``."""
        found = rows.index_select(0, self.slots)
        return found.reshape(self.shape[0], self.shape[1] * GROUP, rows.shape[2])

    def together(self, rows: Tensor) -> Tensor:
        """Undo ``apart``: ``[W,4S,C]`` -> ``[T,4,C]``."""
        width = rows.shape[2]
        return rows.reshape(self.shape[0] * self.shape[1], GROUP, width).index_select(0, self.back)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=True)
        self.proj = Linear(width, width, bias=True)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], windows: Windows | None) -> Tensor:
        """Map x ``[T,4,W]`` to the same shape. With ``windows`` None every patch attends to every patch."""
        query, key, value = self.heads_of(x, rope)
        if windows is None:
            q, k, v = (self._split(y.reshape(1, -1, x.shape[2])) for y in (query, key, value))
            mixed = F.scaled_dot_product_attention(q, k, v)
            return self.proj(self._joined(mixed).reshape(x.shape))
        q, k, v = (self._split(windows.apart(y)) for y in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=windows.mask)
        return self.proj(windows.together(self._joined(mixed)))

    def heads_of(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys, and values: ``[T,4,W]`` each."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        cos, sin = rope
        index = torch.arange(cos.shape[0], device=x.device)[None]

        def turned(y: Tensor) -> Tensor:
            split = self._split(y.reshape(1, -1, y.shape[2]))  # [1,H,4T,dk]
            return self._joined(rotary_embedding(split, cos, sin, index)).reshape(y.shape)

        return turned(query), turned(key), value

    def _split(self, y: Tensor) -> Tensor:
        """Split rows into heads: ``[B,n,W]`` -> ``[B,H,n,dk]``."""
        return y.reshape(y.shape[0], y.shape[1], self.heads, y.shape[2] // self.heads).transpose(1, 2)

    def _joined(self, y: Tensor) -> Tensor:
        """Join heads: ``[B,H,n,dk]`` -> ``[B,n,W]``."""
        return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], y.shape[1] * y.shape[3])

    def received(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attention that each token receives when every patch attends to every patch: ``[T]``.

        It is the mean over heads, over attending patches and over the token's four patches. A loop takes a
        block of queries at a time.
        """
        query, key, _ = self.heads_of(x, rope)
        size = query.shape[0]
        keys = self._split(key.reshape(1, -1, x.shape[2])).transpose(-1, -2)  # [1,H,dk,4T]
        index = torch.arange(_QUERIES, device=x.device)

        def more(done: Tensor, total: Tensor) -> Tensor:
            return done < size

        def turn(done: Tensor, total: Tensor) -> tuple[Tensor, ...]:
            mine = done + index
            block = query.index_select(0, mine.clamp(max=size - 1)).reshape(1, -1, x.shape[2])
            block = self._split(block) * (x.shape[2] // self.heads) ** -0.5
            weight = torch.matmul(block, keys).float().softmax(-1)  # [1,H,4Q,4T]
            real = (mine < size).float()[:, None].expand(-1, GROUP).reshape(-1)
            return done + _QUERIES, total + torch.matmul(real, weight).sum((0, 1))

        done = torch.zeros((), dtype=torch.int64, device=x.device)
        nothing = torch.zeros(size * GROUP, device=x.device)
        total = loop(more, turn, (done, nothing))[1]
        mean = total.reshape(size, GROUP).mean(1) / (self.heads * size * GROUP)
        return mean.to(x.dtype)


class PatchEmbed(nn.Module):
    """A convolution without overlap, applied to patches that are cut out already."""

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__()
        shape = spec.hidden_size, 3, spec.frames, spec.patch_size, spec.patch_size
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values @ self.weight.reshape(self.weight.shape[0], -1).T


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=True)
        self.up_proj = Linear(width, inner, bias=True)
        self.down_proj = Linear(inner, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, spec: WindowSpec) -> None:
        super().__init__()
        self.norm1 = RMSNorm(spec.hidden_size, _EPS)
        self.attn = Attention(spec.hidden_size, spec.num_heads)
        self.norm2 = RMSNorm(spec.hidden_size, _EPS)
        self.mlp = MLP(spec.hidden_size, spec.intermediate_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], windows: Windows | None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, windows)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """The projector: two layers on the four patches of a token side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1 = Linear(inputs, inputs, bias=True)
        self.linear_2 = Linear(inputs, outputs, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``[1,T,4W]`` to visual tokens ``[1,T,D]``."""
        return self.linear_2(F.gelu(self.linear_1(features)))


class Vision(nn.Module):
    """The graph ``vision_encoder``: maps ``WindowSpec.inputs`` to ``projected [1,T,D]`` and the ``taps``.

    Tokens are in the order of the windows. Raises UserError (code 2) for a tap that is not offered, or a
    layer that does not run.
    """

    def __init__(self, spec: WindowSpec, projector: Merger, taps: tuple[str, ...] = ()) -> None:
        super().__init__()
        for tap in taps:
            _check(tap, spec)
        self.spec, self.taps = spec, taps
        self.patch_embed = PatchEmbed(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = RMSNorm(spec.hidden_size, _EPS)
        self.projector = projector

    def forward(self, pixel_values: Tensor, place: Tensor, slots: Tensor, back: Tensor) -> dict[str, Tensor]:
        """Return ``projected`` and the taps by name."""
        x = self.patch_embed(pixel_values)
        rope, windows = self._rope(place, x.dtype), Windows(slots, back)
        found: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if f"received_attention.{index}" in self.taps:
                found[f"received_attention.{index}"] = block.attn.received(block.norm1(x), rope)[None]
            x = block(x, rope, None if index in self.spec.full else windows)
            if f"hidden.{index}" in self.taps:
                found[f"hidden.{index}"] = x.mean(1)[None]
        features = self.norm(x).reshape(1, -1, self.spec.feature_size)
        found |= {"features": features, "projected": self.projector(features)}
        return {name: found[name] for name in ("projected", *self.taps)}

    def _rope(self, place: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin for every patch, ``[4T,dk/2]``.

        Half of the frequencies use the patch's row, half its column.
        """
        quarter = self.spec.hidden_size // self.spec.num_heads // 4
        steps = torch.arange(quarter, device=place.device).float() / quarter
        order = torch.arange(GROUP, device=place.device)
        patch = torch.stack([order // 2, order % 2], 1)  # [4,2]
        where = (2 * place[:, None] + patch).reshape(-1, 2).float()
        angles = where[:, :, None] / 10000.0**steps  # [4T,2,dk/4]
        angles = angles.reshape(-1, 2 * quarter)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _check(tap: str, spec: WindowSpec) -> None:
    offer, dot, number = tap.partition(".")
    if offer not in TAPS:
        raise unknown("tap of Qwen2.5-VL's encoder", offer, TAPS)
    fits = not dot if offer == "features" else number.isdecimal() and int(number) < spec.depth
    if fits and offer == "received_attention" and int(number) not in spec.full:
        raise UserError(
            f"no tap {tap} | of the layers 0..{spec.depth - 1} only {', '.join(map(str, spec.full))} "
            "attend to the whole image | name one of these",
            code=2,
        )
    if not fits:
        raise UserError(
            f"no tap {tap} | the encoder runs layers 0..{spec.depth - 1} | name another layer", code=2
        )
