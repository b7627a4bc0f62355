"""The prompts of calibration: samples run through everything but the decoder's layers.

They run in ONNX Runtime, as on a device.
``Stages`` writes the graphs before and between the language model's segments in float32 and runs them with
the code of ``runtime``. Image, question, budget, chat template, position ids and the rows after a cut are
therefore those of a bundle. The caller runs the layers, so that all prompts can pass one layer before the
next one is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import save_file
from torch import Tensor

from foveate.calib.input_groups import GROUPS
from foveate.calib.samples import Sample
from foveate.engines.disk.files import atomic_file
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec
from foveate.engines.targets import backend
from foveate.export.bundling import write_files, write_graphs
from foveate.export.bundling.precision import Precision
from foveate.export.graphs.graph import Graph
from foveate.export.model_parts import ModelParts
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.clock import Clock
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.prompt_items import prompt_items
from foveate.runtime.llm.prompt_rows import PromptRows
from foveate.runtime.text.chat_prompt import ChatTokenizer, Turn
from foveate.runtime.vision.stages import VisionStages

__all__ = ["Prompt", "Stages", "load_prompts", "save_prompts"]

_DIALECT, _TARGET = "ort", "onnxruntime"


@dataclass(frozen=True)
class Prompt:
    """One sample before a layer.

    ``hidden`` [1,T,D] are its rows and ``chunk`` describes them. ``entering`` and ``scored`` are the rows
    that entered the segment and the scoring layer, if a cut is still ahead. ``carried`` holds the last cut's
    carried values, [1,T] each.
    """

    hidden: Tensor
    chunk: PromptRows
    entering: Tensor | None = None
    scored: Tensor | None = None
    carried: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class _Interface:
    """A stand-in for a segment of which only the interface is used."""

    spec: GraphSpec


class Stages:
    """The stages around the decoder's layers.

    ``folder`` is an empty folder for files; ``manifest`` is that of the bundle without dialects.
    """

    def __init__(
        self,
        folder: Path,
        parts: ModelParts,
        graphs: list[Graph],
        manifest: Manifest,
        progress: write_graphs.Progress,
    ) -> None:
        others = [graph for graph in graphs if not graph.spec.in_place]
        exact = Precision("fp32")
        written = write_graphs.write_graphs(folder, parts, others, exact, [_DIALECT], progress)
        (self._weights,) = written.readings.values()
        write_files.write_files(folder, parts)
        table = write_files.write_embeddings(folder, parts.weights, exact)
        self._bundle = Bundle(folder, replace(manifest, dialects=written.dialects))
        self._cuts = len(manifest.method.cuts)
        self._before = [graph.spec.name for graph in others if not graph.spec.name.startswith("pruner.")]
        self._table, self._layers = table, parts.spec.decoder.num_layers
        # Any: a stand-in has the interface of an engine and cannot run
        engines: dict[str, Any] = {
            name: _Interface(self._bundle.manifest.spec(name, _DIALECT))
            for name, _ in self._bundle.manifest.segments
        }
        engines |= {f"pruner.{cut}": self._engine(f"pruner.{cut}") for cut in range(self._cuts)}
        self._decoder = Decoder(engines, table, self._bundle.manifest)
        self._around = [pair for pair in pairwise(self._decoder.segments) if pair[0].pruner is not None]

    def _engine(self, name: str) -> Engine:
        engines, options = backend(_TARGET), {"provider": "cpu"}
        spec, folder = self._bundle.manifest.spec(name, _DIALECT), self._bundle.file("compiled")
        engines.compile_graph(self._bundle.graph_file(name, _DIALECT), folder, spec, options)
        return engines.load(folder, spec, options)

    def pinned(self) -> set[str]:
        """Return the weights whose module's output a pruner reads directly.

        A pruner's graph holds such a weight, and none of the matrices that read the module's output.
        """
        found = set()
        for layer in range(self._layers):
            for group in GROUPS:
                maker, *reads = (f"llm.layers.{layer}.{path}.weight" for path in (group.maker, *group.reads))
                if maker in self._weights and not any(name in self._weights for name in reads):
                    found.add(maker)
        return found

    def begin(self, samples: Sequence[Sample], progress: write_graphs.Progress) -> list[Prompt]:
        """Return the prompts before the first layer. Raises UserError when one is too long.

        The engines live in this call.
        """
        engines = {name: self._engine(name) for name in self._before}
        tokenizer = ChatTokenizer(self._bundle.file("tokenizer.json"), self._bundle.manifest.prompt)
        vision = VisionStages(self._bundle, engines, tokenizer, self._table)
        found = []
        for number, sample in enumerate(samples):
            progress("calibrating: images", number, len(samples))
            found.append(self._begin(sample, vision, tokenizer))
        return found

    def _begin(self, sample: Sample, vision: VisionStages, tokenizer: ChatTokenizer) -> Prompt:
        decoder, clock = self._decoder, Clock()
        opened, question = vision.open(sample.image), vision.question(sample.prompt, clock)
        budget = vision.budget(None, opened.layout)
        image = vision.prune(vision.see(opened, clock), question, budget, clock)
        items = prompt_items(tokenizer.encode_turns([Turn("user", sample.prompt, 1)]), [image])
        rows, positions = decoder.extent(items)
        if (room := decoder.room(rows, positions)) < 0:
            raise UserError(
                f"a calibration prompt is too long | got {max(rows, positions)} tokens, expected at most "
                f"{max(rows, positions) + room}: {sample.prompt[:60]!r} | shorten it"
            )
        hidden = torch.from_numpy(decoder.embed(items).numpy("float32"))[None]
        return Prompt(hidden, decoder.describe(items), hidden if self._cuts else None)

    def cut(self, number: int, prompt: Prompt) -> Prompt:
        """Return the prompt after pruner ``number``: the rows that stay, with the next position ids."""
        outputs = {"hidden": prompt.hidden.numpy()}
        if prompt.scored is not None:
            outputs["scored"] = prompt.scored.numpy()
        segment, behind = self._around[number]
        assert prompt.entering is not None  # a cut is ahead of this prompt
        entering = prompt.entering.numpy()
        given = {"scored": entering, "inputs_embeds": entering, **outputs}
        rows, chunk, carried = segment.prune(given, prompt.chunk, prompt.carried or {})
        hidden = torch.from_numpy(rows.numpy().copy())
        chunk = replace(chunk, positions=behind.places(chunk.positions))
        copies = {name: value.numpy().copy() for name, value in carried.items()}
        return Prompt(hidden, chunk, hidden if number + 1 < self._cuts else None, None, copies)


def save_prompts(
    path: Path, prompts: Sequence[Prompt], found: dict[str, np.ndarray], facts: dict[str, Any]
) -> None:
    """Save all prompts, the tensors ``found`` so far and the JSON ``facts`` in one file.

    The file is replaced as a whole.
    """
    first = prompts[0]
    arrays = {f"found.{name}": value for name, value in found.items()}
    arrays["length"] = np.array([prompt.hidden.shape[1] for prompt in prompts])
    for name in ("hidden", "entering", "scored"):
        if getattr(first, name) is not None:
            arrays[name] = torch.cat([getattr(prompt, name)[0] for prompt in prompts]).numpy()
    for field in fields(PromptRows):
        arrays[f"chunk.{field.name}"] = np.concatenate(
            [getattr(prompt.chunk, field.name) for prompt in prompts], axis=-1
        )
    for name in first.carried or ():
        arrays[f"carried.{name}"] = np.concatenate([(prompt.carried or {})[name][0] for prompt in prompts])
    with atomic_file(path) as part:
        save_file(arrays, part, {"facts": json.dumps(facts)})


def load_prompts(path: Path) -> tuple[list[Prompt], dict[str, np.ndarray], dict[str, Any]] | None:
    """Return the arguments of ``save_prompts``, or None if there is no file that this version can read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            lengths = arrays["length"]
            prompts = [
                _slice(arrays, slice(end - length, end))
                for end, length in zip(lengths.cumsum(), lengths, strict=True)
            ]
    except (FileNotFoundError, safetensors.SafetensorError, KeyError):
        return None
    found = {
        name.removeprefix("found."): value for name, value in arrays.items() if name.startswith("found.")
    }
    return prompts, found, facts


def _slice(arrays: dict[str, np.ndarray], rows: slice) -> Prompt:
    def tensor(name: str) -> Tensor | None:
        return torch.from_numpy(arrays[name][rows])[None] if name in arrays else None

    return Prompt(
        torch.from_numpy(arrays["hidden"][rows])[None],
        PromptRows(**{field.name: arrays[f"chunk.{field.name}"][..., rows] for field in fields(PromptRows)}),
        tensor("entering"),
        tensor("scored"),
        {n.removeprefix("carried."): v[rows][None] for n, v in arrays.items() if n.startswith("carried.")},
    )
