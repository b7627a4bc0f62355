"""Calibration: run samples through the model as it will be built, and collect statistics of its activations.

The decoder is read layer by layer. Memory holds one layer in float32, the rows of all prompts, and the search
for factors. The vision encoder and pre-LLM pruners run in ONNX Runtime before. After each layer everything is
saved beside the statistics, so a killed run continues from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.calib import samples
from foveate.calib.activation_watch import ROWS, InputWatch, LayerWatch
from foveate.calib.smoothing.fold import Smoothed
from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.write_graphs import Progress
from foveate.export.calibration.prompts import Prompt, Stages, load_prompts, save_prompts
from foveate.export.checkpoints.layered_weights import packed
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.graph import Graph
from foveate.export.model_parts import ModelParts
from foveate.export.networks.decoder import Decoder, DecoderLayer, RMSNorm, rope_of, rope_tables
from foveate.export.pruning.method import Method
from foveate.export.spec import Weights
from foveate.runtime.bundle.manifest import Manifest

__all__ = ["Calibration", "calibrated"]

_FOLDED = {"int4": "awq", "int8": "smoothquant"}
"""Kind of factors that are folded into the decoder's weights, by precision."""


@dataclass(frozen=True)
class Calibration:
    """The user's request for calibration.

    ``source`` and ``count`` name the samples (``calib.samples.load``). Without ``source`` the statistics of
    the file ``statistics`` are used. With ``source`` that file is read if it fits, else written; None puts it
    beside the bundle.
    """

    source: str | None = None
    count: int = samples.COUNT
    statistics: Path | None = None

    def __post_init__(self) -> None:
        assert self.source is not None or self.statistics is not None


def calibrated(
    parts: ModelParts,
    method: Method,
    graphs: list[Graph],
    manifest: Manifest,
    asked: Calibration,
    precision: Precision,
    root: Path,
    beside: Path,
    progress: Progress,
) -> tuple[ModelParts, Statistics]:
    """Return ``parts`` with the factors for ``precision`` folded in, and the statistics of that model.

    ``manifest`` is that of the bundle without dialects. ``root`` is the folder in which the bundle is built,
    ``beside`` its final place. Raises UserError when samples or statistics cannot be used.
    """
    identity: dict[str, Any] = {
        "name": parts.source.get("model"),
        "model": _fingerprint(parts.weights, parts.spec.decoder.num_layers),
        "method": {"name": method.name, "options": method.describe()},
    }
    statistics: Statistics | None
    if asked.source is None:
        assert asked.statistics is not None  # ``Calibration`` has one of the two
        statistics = Statistics.load(asked.statistics)
        statistics.require({key: identity[key] for key in ("model", "method")}, asked.statistics)
    else:
        chosen = samples.load(asked.source, asked.count)
        identity["samples"] = {"count": len(chosen), "sha256": chosen.digest}
        path = asked.statistics or beside.with_name(f"{beside.name}.statistics.safetensors")
        if (statistics := _known(path, identity, asked.statistics is not None)) is None:
            _require_room(path)
            folder = root / "calibrating"
            folder.mkdir()
            stages = Stages(folder, parts, graphs, manifest, _prefixed(progress))
            statistics = _collect(parts, method, stages, chosen, identity, path, progress)
            shutil.rmtree(folder)
    fold = _FOLDED.get(precision.decoder)
    if fold is None or packed(parts.weights):  # weights of a quantized checkpoint stay as they are
        return parts, statistics
    smoothed = Smoothed(parts.weights, statistics.factors(fold))
    return replace(parts, weights=smoothed), statistics.folded(fold)


def _known(path: Path, identity: dict[str, Any], named: bool) -> Statistics | None:
    """Return the statistics at ``path`` if they have this ``identity``, else None.

    Raises UserError for other statistics in a file that the user ``named``, since it is never replaced.
    """
    if not path.is_file():
        return None
    found = Statistics.load(path)
    if named:
        found.require({key: identity[key] for key in ("model", "method", "samples")}, path)
    return found if found.identity == identity else None


def _require_room(path: Path) -> None:
    """Raise UserError now if ``path`` cannot be written, since calibration may take hours."""
    if path.is_dir():
        got = "it is a folder"
    elif not path.parent.is_dir():
        got = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        got = f"{path.parent} cannot be written to"
    else:
        return
    raise UserError(
        f"statistics cannot be kept at {path} | {got}, expected a file in a folder that can be written to "
        "| name another with --statistics"
    )


def _collect(
    parts: ModelParts,
    method: Method,
    stages: Stages,
    chosen: samples.Samples,
    identity: dict[str, Any],
    path: Path,
    progress: Progress,
) -> Statistics:
    partial, spec = path.with_name(f"{path.name}.partial"), parts.spec.decoder
    done = 0
    found: dict[str, np.ndarray] = {}
    saved = load_prompts(partial)
    if saved and saved[2]["identity"] == identity:
        prompts, found, facts = saved
        done = facts["done"]
    else:
        prompts = stages.begin(chosen.items, progress)
    cuts = method.in_llm.prune_layers(spec) if method.in_llm else ()
    numbers, scored = {cut.layer: i for i, cut in enumerate(cuts)}, {cut.scored for cut in cuts}
    pinned = stages.pinned()
    for index in range(done, spec.num_layers):
        progress(f"calibrating layer {index}", index, spec.num_layers)
        if index in numbers:
            prompts = [stages.cut(numbers[index], prompt) for prompt in prompts]
        elif index > 0 and index in scored:
            prompts = [replace(prompt, scored=prompt.hidden) for prompt in prompts]
        prompts, more = _through(parts, index, prompts, pinned)
        found |= more
        save_prompts(partial, prompts, found, {"identity": identity, "done": index + 1})
    statistics = Statistics(found | _head(parts, prompts), identity)
    statistics.save(path)
    partial.unlink()
    return statistics


@torch.inference_mode()
def _through(
    parts: ModelParts, index: int, prompts: Sequence[Prompt], pinned: set[str]
) -> tuple[list[Prompt], dict[str, np.ndarray]]:
    """Run every prompt through layer ``index``.

    Returns the prompts after it, and the statistics of the layer.
    """
    spec, prefix, passed = parts.spec.decoder, f"llm.layers.{index}.", []
    with torch.device("meta"):
        layer = DecoderLayer(spec)
    fill(layer, parts.weights, prefix)
    tables, start = rope_tables(spec), torch.zeros(1, dtype=torch.int64)
    with contextlib.closing(LayerWatch(layer, len(prompts))) as watch:
        for prompt in prompts:
            length = prompt.hidden.shape[1]
            rope = rope_of(spec, *tables, torch.from_numpy(prompt.chunk.positions)[..., None, :])
            empty = torch.zeros(1, spec.num_kv_heads, length, spec.head_dim)
            mask = Decoder.causal_mask(length, length, start)
            hidden, keys, values = layer(prompt.hidden, rope, start, mask, (empty, empty))
            watch.see_cache(keys, values)
            passed.append(replace(prompt, hidden=hidden))
    return passed, watch.finish(prefix, pinned)


@torch.inference_mode()
def _head(parts: ModelParts, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Return input statistics of lm_head, from text rows only: no token is sampled after a visual row."""
    spec = parts.spec.decoder
    with torch.device("meta"):
        norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
    fill(norm, parts.weights, "llm.norm.")
    watch = InputWatch(max(2, -(-ROWS // len(prompts))), spec.hidden_size)
    for prompt in prompts:
        watch.see(norm(prompt.hidden[0, torch.from_numpy(prompt.chunk.image) < 0]))
    return watch.tensors("llm.lm_head.weight")


def _fingerprint(weights: Weights, num_layers: int) -> str:
    """Return SHA-256 over some weights of the first, a middle and the last layer.

    Every kind of fine-tuning changes one of these weights. Reading all weights of a 7B model again would take
    too long.
    """
    digest = hashlib.sha256()
    for layer in sorted({0, num_layers // 2, num_layers - 1}):
        for path in ("input_layernorm", "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            value: Tensor = weights.get(f"llm.layers.{layer}.{path}.weight")
            digest.update(value.float().contiguous().numpy().data)
    return digest.hexdigest()


def _prefixed(progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"calibrating: {what}", done, total)
