"""What only the training of OC-VTP's pruner needs: its decoder, its loss, and what both say of a selection.

The decoder is the published one (github.com/GarryLarry010131/OC-VTP) under its state-dict names: a transformer that sees
some of the tokens and the slots, and is to tell all tokens. There the tokens are shuffled, all but the first few hidden,
and shuffled back; a transformer without a causal mask cannot tell, so here a random set of tokens is seen where it stands.

`reconstruction_errors` and `slot_share` answer the paper's claims for a trained pruner:

    pruner, decoder = load(folder)
    reconstruction_errors(pruner, decoder, features, 64)     # {"slots": ..., "picks": ..., "uniform": ..., "random": ...}
    slot_share(pruner, features, 64)                         # 0.6: of 64 kept tokens 38 are some slot's pick
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.export import methods
from foveate.export.checkpoints import pruner_weights
from foveate.export.methods._ocvtp_network import TURNS, SlotPruner
from foveate.export.methods.ocvtp import noise_table, picks

__all__ = [
    "SEEN",
    "Decoder",
    "area_weighted_loss",
    "draw_seen",
    "load",
    "nearest_error",
    "reconstruction_errors",
    "save_decoder",
    "slot_share",
]

SEEN = 24
"""Tokens that the decoder sees when it does not see a random number of them: int(256 * 0.1) - 1 in the published code."""


class Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self._pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width)))


class Project(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x))


class Decoder(nn.Module):
    """`width` D and `tokens` N are the tower's. `inner`, the feed-forward's width, is 4 D by default, as published."""

    def __init__(
        self, width: int, tokens: int, *, layers: int = 4, heads: int = 4, inner: int | None = None
    ) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.posit_embed = Positions(tokens, width)
        self.project1 = Project(width, width)
        self.project2 = Project(width // 2, width)
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "bias": False}
        layer = nn.TransformerDecoderLayer(width, heads, inner or 4 * width, dropout=0.0, **options)
        self.backbone = nn.TransformerDecoder(layer, layers)
        self.norm0 = self.backbone.layers[0].norm1  # before the first residual path and not inside it
        self.backbone.layers[0].norm1 = nn.Identity()

    def forward(self, features: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """features [B,N,D], slots [B,S,D/2], seen [B,N] bool -> all tokens [B,N,D], told from those seen and the slots."""
        tokens = torch.where(seen[..., None], self.project1(features), self.mask_token)
        query = self.norm0(tokens + self.posit_embed._pe)
        return self.backbone(query, self.project2(slots))


def draw_seen(batch: int, tokens: int, *, share: float = 0.5, few: int = SEEN) -> Tensor:
    """Which tokens the decoder sees, [B,N] bool: with probability `share` a uniform random number, else `few`."""
    place = torch.rand(batch, tokens).argsort(1).argsort(1)
    any_number = torch.randint(0, tokens - 1, (batch, 1))
    return place < torch.where(torch.rand(batch, 1) < share, any_number, min(few, tokens - 1))


def area_weighted_loss(
    told: Tensor, features: Tensor, attention: Tensor, *, power: float = 0.5, cap: float = 10.0
) -> Tensor:
    """Mean squared error in which the tokens of small slots count more: one number.

    A slot's area is the share of tokens that it gets most of; its weight area^-power, normalised to mean 1 over the slots
    and then capped. Slots without a token take part in that mean with area 1e-8, as in the published code. A token's
    weight is the mean of the slots' weights by its attention [B,S,N]; no gradient flows through it.
    """
    attention = attention.detach()
    size, count = attention.shape[2], attention.shape[1]
    area = nn.functional.one_hot(attention.argmax(1), count).sum(1) / size  # [B,S]
    weight = area.clamp(min=1e-8) ** -power
    weight = (weight / weight.mean(1, keepdim=True)).clamp(max=cap)
    share = (attention * weight[..., None]).sum(1)  # [B,N]
    errors = (told - features).square().mean(2)
    return ((share * errors).sum(1) / share.sum(1)).mean()


def save_decoder(decoder: Decoder, path: Path, dtype: torch.dtype) -> None:
    """Under the published names; what the sizes do not tell is in the metadata."""
    stored = {f"decode.{name}": value.to("cpu", dtype) for name, value in decoder.state_dict().items()}
    save_file(stored, path, {"heads": str(decoder.backbone.layers[0].self_attn.num_heads)})


def load(folder: Path) -> tuple[SlotPruner, Decoder]:
    """The pruner and the decoder that training left in `folder`, ready to be asked."""
    path = folder / "ocvtp_decoder.safetensors"
    found = {name.removeprefix("decode."): value for name, value in pruner_weights.read(path).items()}
    with safe_open(path, framework="pt") as file:
        heads = int(file.metadata()["heads"])
    _, tokens, width = found["posit_embed._pe"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("backbone.layers."))
    inner = found["backbone.layers.0.linear1.weight"].shape[0]
    decoder = Decoder(width, tokens, layers=layers, heads=heads, inner=inner)
    decoder.load_state_dict(found)
    pruner = pruner_weights.load(SlotPruner(width), folder / "ocvtp.safetensors")
    return pruner.eval(), decoder.eval()


@torch.no_grad()
def reconstruction_errors(
    pruner: SlotPruner,
    decoder: Decoder,
    features: Tensor,
    count: int,
    *,
    grid: tuple[int, int],
    seed: int = 0,
) -> dict[str, float]:
    """How much of the tokens' variance the decoder does not tell from `count` slots, for four kinds of slots.

    features [B,N,D] are those that the pruner reads, of pictures it was not trained on. "slots" are those of slot attention.
    In the others each slot looks at one token alone, in all turns: "picks" at the one that the slot of slot attention
    attends to most (a slot whose token was picked before looks at it again), "uniform" at one of `count` evenly spread ones,
    "random" at one of `count` random ones. Network, decoder and the tokens it sees are the same in all four. 0 is all told,
    1 is no better than the mean of these pictures.
    """
    batch, tokens, _ = features.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, pruner.slot_width, generator=generator)[None]
    seen = torch.rand(batch, tokens, generator=generator).argsort(1).argsort(1) < min(SEEN, tokens - 1)
    slots, attention = pruner.attend(features, noise)
    looks = {
        "picks": attention.argmax(2),
        "uniform": methods.load("uniform").reduce(features[:1], {}, count, grid)[1].expand(batch, -1),
        "random": torch.rand(batch, tokens, generator=generator).argsort(1)[:, :count],
    }
    kinds = {"slots": slots} | {kind: _looking_at(pruner, features, noise, at) for kind, at in looks.items()}
    around = _around_mean(features)
    return {
        kind: ((decoder(features, each, seen) - features).square().sum() / around).item()
        for kind, each in kinds.items()
    }


def _looking_at(pruner: SlotPruner, features: Tensor, noise: Tensor, at: Tensor) -> Tensor:
    """The slots [B,S,d] of a network whose attention is replaced: slot s looks at token at[:, s] alone."""
    slots = pruner.initializ(noise).expand(len(features), -1, -1)
    attention = nn.functional.one_hot(at, features.shape[1]).float()
    _, value = pruner.aggregat.read(pruner.encode_project(features))
    for _ in range(TURNS):
        slots = pruner.aggregat.update(slots, attention, value)
    return slots


def nearest_error(features: Tensor, kept: Tensor) -> float:
    """Without any decoder: the squared distance of each token to the nearest kept one, as a share of the variance.

    features [B,N,D], kept [B,K] positions.
    """
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[2]))
    return (torch.cdist(features, chosen).amin(2).square().sum() / _around_mean(features)).item()


def _around_mean(features: Tensor) -> Tensor:
    """Squared distance of pictures [B,N,D] to the mean picture, summed; what lies in the positions alone is no error."""
    return (features - features.mean(0)).square().sum()


@torch.no_grad()
def slot_share(pruner: SlotPruner, features: Tensor, keep: int, *, top_k: int = 1, seed: int = 0) -> float:
    """The share of `keep` kept tokens that some slot picked; the rest comes from the fill. Mean over features [B,N,D].

    Of method `ocvtp` with these options: slots, noise and picks are those of its graph.
    """
    rows = noise_table(features.shape[1] + 1, pruner.slot_width, seed)[: max(1, (keep + 1) // top_k)]
    _, attention = pruner.attend(features, rows[None])
    return picks(attention, top_k).sum(1).clamp(max=keep).float().mean().item() / keep
