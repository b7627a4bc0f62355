"""Batches for training `shapes`.

They have scenes with a label per patch, captions and grounded texts, or packed questions.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset

from foveate.calib.scenes.questions import (
    CELLS,
    COLOURS,
    GLYPHS,
    HELD_OUT,
    KINDS,
    SHAPES,
    SIDE,
    Scene,
    captions,
    make_scene,
    questions,
)

PATCH = 7
GRID = SIDE // PATCH
# Labels of a patch in the dense loss. Class 0 of each means "no thing here".
# `centre` is 1 at a thing's centre.
LABELS = {
    "colour": [None, *COLOURS, "white"],
    "shape": [None, *SHAPES, "sign"],
    "size": [None, "small", "medium", "large"],
    "glyph": [None, *GLYPHS],
    "cell": [None, *CELLS],
    "centre": [None, "centre"],
}
INDEX = {name: {value: i for i, value in enumerate(values)} for name, values in LABELS.items()}
TEXT_LENGTH = 32  # tokens of a caption or question, with BOS and EOS; the text encoder accepts 77
TURN_LENGTH = 18  # tokens of one packed question with its answer


def patch_owner(scene: Scene) -> np.ndarray:
    """Return for each patch the index + 1 of the thing that covers most of it, [GRID * GRID].

    It is 0 if no thing covers at least a quarter of the patch.
    """
    tiles = scene.owner.reshape(GRID, PATCH, GRID, PATCH)
    cover = np.stack(
        [(tiles == i + 1).sum((1, 3)) for i in range(len(scene.things))] or [np.zeros((GRID, GRID))]
    )
    return np.where(cover.max(0) * 4 >= PATCH * PATCH, cover.argmax(0) + 1, 0).ravel()


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return `patch_owner`, and the class of every patch for each entry of LABELS, [GRID * GRID, 6]."""
    owner = patch_owner(scene)
    table = np.zeros((len(scene.things) + 1, len(LABELS)), np.int64)
    for i, thing in enumerate(scene.things):
        values = (thing.colour, thing.shape, thing.size, thing.glyph, thing.cell, None)
        table[i + 1] = [INDEX[name][value] for name, value in zip(LABELS, values, strict=True)]
    labels = table[owner]
    for thing in scene.things:
        labels[thing.y // PATCH * GRID + thing.x // PATCH, -1] = 1
    return owner, labels


def kept_patches(owner: np.ndarray, keep: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `keep` patches, in ascending order: things and their surroundings first, then random ground."""
    near = np.zeros((GRID + 2, GRID + 2), bool)
    things = owner.reshape(GRID, GRID) > 0
    for dy in range(3):
        for dx in range(3):
            near[dy : dy + GRID, dx : dx + GRID] |= things
    order = rng.random(GRID * GRID) + near[1:-1, 1:-1].ravel() + things.ravel()
    return np.sort(np.argpartition(-order, keep - 1)[:keep])


class _Stream(IterableDataset):
    """Endless batches. The scenes of worker w have the seeds w, w + workers, ... from `seed` on."""

    def __init__(self, seed: int, batch: int, tokenizer: Path, **scene_options):
        self.seed, self.batch, self.tokenizer_path, self.scene_options = seed, batch, tokenizer, scene_options

    def open(self) -> None:
        """Read the tokenizer, in the process that draws the scenes."""
        self.tokenizer = Tokenizer.from_file(str(self.tokenizer_path))
        self.encode = lru_cache(50_000)(self._encode)

    def __iter__(self):
        self.open()
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        seed = self.seed + worker
        while True:
            rng, rows = np.random.default_rng((seed, 1)), []
            while len(rows) < self.batch:
                rows.append(self.row(make_scene(seed % HELD_OUT, **self.scene_options), rng))
                seed += workers
            yield {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


class TowerBatches(_Stream):
    """Batches for the vision encoder.

    They have pixels [B,S,S,3], kept [B,K], labels [B,K,6], caption [B,L], texts [B,T,L], and grounded
    [B,T,K], the patches that a text is about.
    """

    def __init__(self, seed: int, batch: int, tokenizer: Path, keep: int, texts: int = 4, **scene_options):
        super().__init__(seed, batch, tokenizer, **scene_options)
        self.keep, self.texts = keep, texts

    def _encode(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text).ids
        end = ids[-1]
        ids = [*ids[: TEXT_LENGTH - 1], end] if len(ids) > TEXT_LENGTH else ids
        return np.array(ids + [end] * (TEXT_LENGTH - len(ids)))

    def row(self, scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
        owner, labels = patch_labels(scene)
        kept = kept_patches(owner, self.keep, rng) if self.keep < GRID * GRID else np.arange(GRID * GRID)
        asked = questions(scene, rng, self.texts)
        number = {thing.box: i + 1 for i, thing in enumerate(scene.things)}
        about = [np.isin(owner[kept], [number[box] for box in question.boxes]) for question in asked]
        return {
            "pixels": np.asarray(scene.image),
            "kept": kept,
            "labels": labels[kept],
            "caption": self.encode(captions(scene, rng)[0]),
            "texts": np.stack([self.encode(question.text) for question in asked]),
            "grounded": np.stack(about),
        }


class TurnBatches(_Stream):
    """Batches for the language model.

    They have pixels [B,S,S,3], turns [B,Q,L] (token ids after the image), target [B,Q,L] (-100 where nothing
    is learned) and kind [B,Q].
    """

    def __init__(self, seed: int, batch: int, tokenizer: Path, turns: int = 16, **scene_options):
        super().__init__(seed, batch, tokenizer, **scene_options)
        self.turns = turns

    def _encode(self, question: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a turn and its targets: the answer and the end token, each predicted from the one before."""
        ids = self.tokenizer.encode(f"\n{question} ASSISTANT: {answer}</s>", add_special_tokens=False).ids
        asked = len(self.tokenizer.encode(f"\n{question} ASSISTANT:", add_special_tokens=False).ids)
        turn, target = np.zeros(TURN_LENGTH, np.int64), np.full(TURN_LENGTH, -100)
        turn[: len(ids)] = ids
        target[asked - 1 : len(ids) - 1] = ids[asked:]
        return turn, target

    def row(self, scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
        asked = questions(scene, rng, self.turns)
        turns = [self.encode(question.text, question.answer) for question in asked]
        return {
            "pixels": np.asarray(scene.image),
            "turns": np.stack([turn for turn, _ in turns]),
            "target": np.stack([target for _, target in turns]),
            "kind": np.array([KINDS.index(question.kind) for question in asked]),
        }
