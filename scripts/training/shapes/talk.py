"""The language stages of `shapes`: many questions about one image, with transformers' own LLaVA layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.calib.scenes.questions import KINDS
from training.shapes.data import GRID
from training.shapes.stages import device, normalise, run_layers


def packed_attention(
    module, query, key, value, attention_mask, scaling, turns: int = 0, length: int = 0, **_
):
    """Attend causally in the context (prefix and image); a turn sees the context and itself.

    q, k, v [B,H,N,d] -> [B,N,H,d].
    """
    context = query.shape[2] - turns * length
    (q, own_q), (k, own_k), (v, own_v) = (x.split([context, turns * length], 2) for x in (query, key, value))
    own_q, own_k, own_v = (x.unflatten(2, (turns, length)) for x in (own_q, own_k, own_v))
    future = torch.ones(context, context, dtype=torch.bool, device=q.device).triu(1)
    seen = ((q @ k.mT) * scaling).masked_fill(future, -1e4).float().softmax(-1).to(q.dtype) @ v
    own = ((own_q @ own_k.mT) * scaling).masked_fill(future[:length, :length], -1e4)
    scores = torch.cat([(own_q.flatten(2, 3) @ k.mT) * scaling, own.flatten(2, 3)], -1)
    weights = scores.float().softmax(-1).to(q.dtype)
    said = weights[..., :context] @ v
    said = said + (weights[..., context:].unflatten(2, (turns, length)) @ own_v).flatten(2, 3)
    return torch.cat([seen, said], 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("packed", packed_attention)


def run_decoder(layers: Iterable[nn.Module], hidden: Tensor, position, turns: int, length: int) -> Tensor:
    for layer in layers:
        hidden = layer(hidden, position_embeddings=position, turns=turns, length=length)
    return hidden


class Talker(nn.Module):
    """LLaVA on packed turns.

    `pool` 2 averages 2 x 2 patches. A block then has the position of its top left patch.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, prefix: list[int], pool: int, compiled: bool):
        super().__init__()
        self.llava, self.pool = llava, pool
        llava.model.vision_tower.requires_grad_(False)
        llava.model.language_model.config._attn_implementation = "packed"
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)
        grid = torch.arange(GRID * GRID).view(GRID, GRID)[::pool, ::pool].flatten()
        self.register_buffer("places", len(prefix) + grid, persistent=False)
        self.see = torch.compile(run_layers) if compiled else run_layers
        self.think = torch.compile(run_decoder) if compiled else run_decoder

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return the projector's input [B,N,Dv] for pixels, uint8 [B,H,W,3]."""
        tower = self.llava.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(normalise(pixels)))
        hidden = self.see(tower.encoder.layers[:-1], hidden, None)[-1][:, 1:]
        maps = hidden.mT.unflatten(-1, (GRID, GRID))
        return F.avg_pool2d(maps, self.pool).flatten(2).mT if self.pool > 1 else hidden

    def hidden(self, features: Tensor, turns: Tensor) -> Tensor:
        """Return the final states [B,Q,L,D] of turns [B,Q,L] after features [B,N,Dv]."""
        model = self.llava.model
        words = model.get_input_embeddings()
        seen = model.multi_modal_projector(features)
        prefix = words(self.prefix).expand(len(turns), -1, -1)
        hidden = torch.cat([prefix.to(seen.dtype), seen, words(turns.flatten(1)).to(seen.dtype)], 1)
        start = len(self.prefix) + GRID * GRID
        turn = torch.arange(start, start + turns.shape[2], device=turns.device).repeat(turns.shape[1])
        before = torch.arange(len(self.prefix), device=turns.device)
        position = model.language_model.rotary_emb(hidden, torch.cat([before, self.places, turn])[None])
        hidden = self.think(model.language_model.layers, hidden, position, turns.shape[1], turns.shape[2])
        hidden = model.language_model.norm(hidden[:, -turn.shape[0] :])
        return hidden.unflatten(1, turns.shape[1:])

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of the answers, and the accuracy per kind over images that are new."""
        target = batch["target"]
        asked = target >= 0
        logits = self.llava.lm_head(self.hidden(batch["features"], batch["turns"])[asked]).float()
        values = {"loss": F.cross_entropy(logits, target[asked])}
        wrong = torch.zeros_like(asked)
        wrong[asked] = logits.argmax(-1) != target[asked]
        right = ~wrong.any(-1)[: batch["fresh"]]
        for number, kind in enumerate(KINDS):
            values[kind] = right[batch["kind"][: batch["fresh"]] == number].float().mean()
        return values


def replay(
    stream: Iterable[dict[str, Tensor]],
    features: Callable[[Tensor], Tensor],
    *,
    batch: int,
    turns: int,
    capacity: int,
    seed: int,
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of new images first, then of images seen before.

    Each image comes with a random few of its questions.
    The features of a frozen vision encoder are expensive and a question is cheap, so features are kept and
    used again.
    """
    random = torch.Generator().manual_seed(seed)
    kept: list[dict[str, Tensor]] = []
    for fresh in stream:
        with torch.autocast(device().type, torch.bfloat16):
            fresh["features"] = features(fresh.pop("pixels").to(device())).bfloat16().cpu()
        rows = [{name: value[i] for name, value in fresh.items()} for i in range(len(fresh["features"]))]
        again = torch.randint(max(1, len(kept)), (batch - len(rows),), generator=random).tolist()
        chosen = rows + [kept[i] if kept else rows[0] for i in again]
        kept += rows
        del kept[: max(0, len(kept) - capacity)]
        picks = [torch.randperm(len(row["kind"]), generator=random)[:turns] for row in chosen]
        out = {
            name: torch.stack([row[name][pick].long() for row, pick in zip(chosen, picks, strict=True)])
            for name in ("turns", "target", "kind")
        }
        features_of = torch.stack([row["features"] for row in chosen])
        yield out | {"features": features_of, "fresh": torch.tensor(len(rows))}
