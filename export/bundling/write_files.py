"""Write the other files of a bundle: token embedding, tokenizers, licences and reference answers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.export.bundling.graph_weights import Reading
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.reference import run as reference_run
from foveate.export.bundling.reference.ranges import Ranges
from foveate.export.bundling.weight_store import require_finite
from foveate.export.graphs.graph import Graph
from foveate.export.model_parts import ModelParts
from foveate.export.pruning.method import Method
from foveate.export.spec import Weights
from foveate.runtime.images.processor import image_processor
from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot, Turn, clip_segments, load_tokenizer

__all__ = ["GOLDEN_TEXT", "write_embeddings", "write_files", "write_golden"]

GOLDEN_TEXT = "What is in the image, and where?"


def write_embeddings(root: Path, weights: Weights, precision: Precision) -> np.ndarray:
    """Write ``embed_tokens.npy [V,D]``, float32 in fp32 bundles and else float16.

    Returns it mapped, as the runtime does.
    """
    dtype = "float32" if precision.decoder == "fp32" else "float16"
    table, path = weights.get("embed_tokens"), root / "embed_tokens.npy"
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(table.shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in table.split(4096):  # a second whole table would take gigabytes
            stored = rows.to(getattr(torch, dtype)).contiguous().numpy()
            require_finite("embed_tokens", stored)
            file.write(stored.data)
    return np.load(path, mmap_mode="r")


def write_files(root: Path, parts: ModelParts) -> None:
    """Write licences, tokenizers and the family's own files."""
    for name, source in parts.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            (root / name).write_bytes(source)
        else:
            shutil.copyfile(source, root / name)


def write_golden(
    root: Path,
    parts: ModelParts,
    method: Method,
    graphs: list[Graph],
    readings: Mapping[str, Reading],
    table: np.ndarray,
) -> Ranges:
    """Record the reference answers to a fixed question, in one file for each of ``readings``.

    Returns the largest values that were computed.
    """
    ranges = Ranges()
    one_axis = parts.spec.decoder.position_axes == 1
    renumbers = method.in_llm is not None and method.in_llm.position_mode == "compact" and one_axis
    images = image_processor(parts.image)
    plan = images.token_layout(images.reference_size(), parts.spec.vision.grid)
    whole = method.pre_llm is not None and method.pre_llm.whole
    facts = reference_run.Facts(plan, method.budgets(parts.spec), renumbers, whole)
    question = _question(root, parts, graphs)
    for name, reading in readings.items():
        arrays: dict[str, Any] = {**reference_run.record(graphs, reading, table, question, facts, ranges)}
        np.savez(root / name, **arrays)  # numpy's types would take an array for allow_pickle
    return ranges


def _question(root: Path, parts: ModelParts, graphs: list[Graph]) -> reference_run.Question:
    tokenizer = ChatTokenizer(root / "tokenizer.json", parts.prompt)
    segments = tokenizer.encode_turns([Turn("user", GOLDEN_TEXT, images=1)])
    slot = next(i for i, segment in enumerate(segments) if isinstance(segment, ImageSlot))
    none = np.empty(0, np.int64)
    clip_ids = None
    for graph in graphs:
        if graph.spec.name == "text_encoder":
            context = graph.spec.input("input_ids").shape[1]
            assert isinstance(context, int)  # CLIP's context has one length
            clip_ids = clip_segments(GOLDEN_TEXT, load_tokenizer(root / "clip_tokenizer.json"), context)
    return reference_run.Question(
        before=np.concatenate([none, *segments[:slot]]),
        after=np.concatenate([none, *segments[slot + 1 :]]),
        words=tokenizer.encode_text(GOLDEN_TEXT),
        clip_ids=clip_ids,
    )
