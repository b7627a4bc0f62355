"""The decoder and the loss that only the training of OC-VTP's pruner needs, and measures of a selection.

The decoder is the published one (github.com/GarryLarry010131/OC-VTP) under its state-dict names: a
transformer that sees the slots and some of the tokens, and predicts all tokens. The published code shuffles
the tokens, hides all but the first few, and shuffles back. A transformer without a causal mask cannot see the
order, so here a random set of tokens is seen in place.

`reconstruction_errors` and `slot_share` test the paper's claims for a trained pruner:

    pruner, decoder = load(folder)
    reconstruction_errors(pruner, decoder, features, 64)   # {"slots": ..., "picks": ..., "uniform": ..., ...}
    slot_share(pruner, features, 64)                       # 0.6: 38 of 64 kept tokens are some slot's pick
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.export import methods
from foveate.export.methods._ocvtp_network import TURNS, SlotPruner
from foveate.export.methods.ocvtp import noise_table, picks
from foveate.export.other_checkpoints import pruner_weights

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
"""Number of tokens that the decoder sees if it is not random.

It is int(256 * 0.1) - 1 in the published code.
"""


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
    """The published decoder.

    `width` D and `tokens` N are the vision encoder's. `inner`, the feed-forward's width, is 4 D by default,
    as published.
    """

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
        self.norm0 = self.backbone.layers[0].norm1  # before the first residual path, not inside it
        self.backbone.layers[0].norm1 = nn.Identity()

    def forward(self, features: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """Predict all tokens [B,N,D] from slots [B,S,D/2] and the seen features.

        features [B,N,D] are seen where seen [B,N] bool is True.
        """
        tokens = torch.where(seen[..., None], self.project1(features), self.mask_token)
        query = self.norm0(tokens + self.posit_embed._pe)
        return self.backbone(query, self.project2(slots))


def draw_seen(batch: int, tokens: int, *, share: float = 0.5, few: int = SEEN) -> Tensor:
    """Draw the tokens that the decoder sees, [B,N] bool.

    Their number is uniformly random with probability `share`, else `few`.
    """
    place = torch.rand(batch, tokens).argsort(1).argsort(1)
    any_number = torch.randint(0, tokens - 1, (batch, 1))
    return place < torch.where(torch.rand(batch, 1) < share, any_number, min(few, tokens - 1))


def area_weighted_loss(
    told: Tensor, features: Tensor, attention: Tensor, *, power: float = 0.5, cap: float = 10.0
) -> Tensor:
    """Return the mean squared error, with more weight on the tokens of small slots.

    A slot's area is the share of tokens whose attention is largest for it. Its weight is area^-power,
    normalised to mean 1 over the slots and then capped. Slots without a token enter that mean with area 1e-8,
    as in the published code. A token's weight is the mean of the slots' weights by its attention [B,S,N]. No
    gradient flows through it.
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
    """Save the decoder under the published names. The metadata has what the sizes do not tell."""
    stored = {f"decode.{name}": value.to("cpu", dtype) for name, value in decoder.state_dict().items()}
    save_file(stored, path, {"heads": str(decoder.backbone.layers[0].self_attn.num_heads)})


def load(folder: Path) -> tuple[SlotPruner, Decoder]:
    """Load the pruner and the decoder that training left in `folder`, in evaluation mode."""
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
    """Return the share of the tokens' variance that the decoder misses with `count` slots.

    There is one result for each of four kinds of slots.     features [B,N,D] are the pruner's input, for
    images that it was not trained on. "slots" are those of slot attention. In the other three, each slot
    looks at only one token in all iterations: "picks" at the token that the slot of slot attention attends to
    most (several slots may pick the same token), "uniform" at one of `count` evenly spread tokens, and
    "random" at one of `count` random tokens. Network, decoder and the seen tokens are the same in all four. 0
    means that nothing is missed, 1 that it is no better than the mean of these images.
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
    """Return the slots [B,S,d] if slot s attends only to token at[:, s]."""
    slots = pruner.initializ(noise).expand(len(features), -1, -1)
    attention = nn.functional.one_hot(at, features.shape[1]).float()
    _, value = pruner.aggregat.read(pruner.encode_project(features))
    for _ in range(TURNS):
        slots = pruner.aggregat.update(slots, attention, value)
    return slots


def nearest_error(features: Tensor, kept: Tensor) -> float:
    """Return the squared distance of each token to the nearest kept one, as a share of the variance.

    It needs no decoder. features [B,N,D], kept [B,K] positions.
    """
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[2]))
    return (torch.cdist(features, chosen).amin(2).square().sum() / _around_mean(features)).item()


def _around_mean(features: Tensor) -> Tensor:
    """Return the summed squared distance of images [B,N,D] to the mean image.

    What depends only on the position thus counts as no error.
    """
    return (features - features.mean(0)).square().sum()


@torch.no_grad()
def slot_share(pruner: SlotPruner, features: Tensor, keep: int, *, top_k: int = 1, seed: int = 0) -> float:
    """Return the share of `keep` kept tokens that some slot picked, as the mean over features [B,N,D].

    The other tokens come from the fill. Slots, noise and picks are those of method `ocvtp`'s graph with these
    options.
    """
    rows = noise_table(features.shape[1] + 1, pruner.slot_width, seed)[: max(1, (keep + 1) // top_k)]
    _, attention = pruner.attend(features, rows[None])
    return picks(attention, top_k).sum(1).clamp(max=keep).float().mean().item() / keep
