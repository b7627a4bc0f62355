"""Shared by tests of in-LLM methods: prompts in numbers, and a pruner's graph in torch and ONNX."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import GraphSpec
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.assemble import assemble
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.trace import trace
from foveate.export.models import llava
from foveate.export.networks.decoder import rope_tables
from foveate.export.pruning.in_llm import InLLMPruner

Feeds = dict[str, torch.Tensor]


class Model:
    """A small random model with a method whose graphs ``pruner.<stage>`` are run.

    The grid is 8 x 8, and there are 4 heads.
    """

    grid = (8, 8)

    def __init__(self, method: InLLMPruner, layers: int = 8, kv_heads: int = 2) -> None:
        self.parts = llava.tiny(layers=layers, kv_heads=kv_heads)
        self.spec = self.parts.spec.decoder
        self.graphs, self._filled = self._pruners(method), self._pruners(method)
        for graph in self._filled:
            fill(graph.module, self.parts.weights, graph.weight)

    def _pruners(self, method: InLLMPruner) -> list[Graph]:
        return [graph for graph in assemble(self.parts, method) if graph.spec.name.startswith("pruner.")]

    def prompt(
        self, seed: int, keep: int = 16, layout: tuple[int, ...] = (5, -64, 9), dtype: str = "float32"
    ) -> Feeds:
        """Return every input that a pruner may have.

        ``layout`` holds lengths of text, and negative ones of images, which keep their first patches.
        """
        generator = torch.Generator().manual_seed(seed)
        image, patch, entered = [], [], []
        for length in layout:
            number = 1 + max(image, default=-1) if length < 0 else -1
            image += [number] * abs(length)
            patch += list(range(-length)) or [-1] * length
            entered += [max(-length, 0)] * abs(length)
        size = len(image)
        visual = torch.tensor(image) >= 0
        floats = {
            name: torch.randn(1, size, self.spec.hidden_size, generator=generator).to(getattr(torch, dtype))
            for name in ("hidden", "scored", "inputs_embeds")
        }
        numbers = {
            "image": torch.tensor(image),
            "patch": torch.tensor(patch),
            "rows": torch.where(visual, self.grid[0], 1),
            "columns": torch.where(visual, self.grid[1], 1),
            "entered": torch.tensor(entered),
            "position_ids": torch.arange(size),
            "keep": torch.where(visual, keep, 0),
        }
        return floats | {name: value[None] for name, value in numbers.items()}

    def weight(self, name: str) -> np.ndarray:
        """Return a weight of the language model in float64; matrices are ``[in, out]``."""
        return self.parts.weights.get(f"llm.{name}").double().numpy()

    def rms(self, x: np.ndarray, name: str) -> np.ndarray:
        """``x [T,D]`` behind the norm ``name``."""
        mean = np.mean(x * x, axis=1, keepdims=True)
        return x / np.sqrt(mean + self.spec.rms_norm_eps) * self.weight(f"{name}.weight")

    def rotated(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """``x [T,Dh]`` by rotary embedding, halves as pairs."""
        half = x.shape[1] // 2
        angle = positions[:, None] / self.spec.rope_theta ** (np.arange(half) / half)
        first, second = x[:, :half], x[:, half:]
        turned = (
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        )
        return np.concatenate(turned, axis=1)

    def reference(self, feeds: Feeds, layer: int) -> SimpleNamespace:
        """Return the feeds in float64 without the batch, and what the attention of ``layer`` computes.

        Queries and keys are per query head ``[H,T,Dh]``; the attention is ``[H,T,T]``.
        """
        known = {
            name: value[0].double().numpy() if value.is_floating_point() else value[0].numpy()
            for name, value in feeds.items()
        }
        normed = self.rms(known["scored"], f"layers.{layer}.input_layernorm")
        shared = self.spec.num_heads // self.spec.num_kv_heads
        width, positions = self.spec.head_dim, known["position_ids"]
        queries = normed @ self.weight(f"layers.{layer}.self_attn.q_proj.weight")
        keys = normed @ self.weight(f"layers.{layer}.self_attn.k_proj.weight")
        split = [slice(h * width, (h + 1) * width) for h in range(self.spec.num_heads)]
        q = np.stack([self.rotated(queries[:, part], positions) for part in split])
        k = np.stack([self.rotated(keys[:, split[h // shared]], positions) for h in range(len(split))])
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        attention = weight / weight.sum(-1, keepdims=True)
        visual = [np.flatnonzero(known["image"] == p).tolist() for p in range(known["image"].max() + 1)]
        return SimpleNamespace(**known, normed=normed, q=q, k=k, attention=attention, images=visual)

    def __call__(self, feeds: Feeds, stage: int = 0) -> Feeds:
        """The stage's outputs in torch, float32."""
        graph = self._filled[stage]
        inputs = [feeds[tensor.name] for tensor in graph.spec.inputs]
        with torch.no_grad():
            found = graph.module(*(x.float() if x.is_floating_point() else x for x in inputs))
        return {tensor.name: value for tensor, value in zip(graph.spec.outputs, found, strict=True)}

    def left(self, feeds: Feeds, stage: int = 0) -> list[int]:
        """The rows that stay, as a list."""
        found = self(feeds, stage)
        return found["kept"][0, : int(found["count"])].tolist()

    def save(self, path: Path, stage: int = 0, dtype: str = "float32") -> GraphSpec:
        graph = self.graphs[stage]
        model = trace(graph, dtype)
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                found = self._rope(name) if "rope" in name else self.parts.weights.get(name)
                value.const_value = ir.tensor(found.to(getattr(torch, dtype)).numpy(), name=name)
        ir.save(model, path)
        return graph.spec.typed(dtype)

    def _rope(self, name: str) -> torch.Tensor:
        cos, sin = rope_tables(self.spec)
        return cos if name.endswith("cos") else sin

    def session(self, path: Path, stage: int = 0, dtype: str = "float32") -> Session:
        return Session(self.save(path, stage, dtype), path)


class Session:
    """ONNX Runtime on one thread, torch tensors in and out."""

    def __init__(self, spec: GraphSpec, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._spec = spec
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Feeds) -> Feeds:
        given: dict[str, Any] = {t.name: feeds[t.name].numpy() for t in self._spec.inputs}
        names = [tensor.name for tensor in self._spec.outputs]
        found = self._session.run(names, given)
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


@pytest.fixture
def model() -> type[Model]:
    return Model
