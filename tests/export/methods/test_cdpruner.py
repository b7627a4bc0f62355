"""cdpruner against a slow transcription in float64, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transcriptions import cosines

from foveate.export import methods


def stretched(cue: np.ndarray) -> np.ndarray:
    return (cue - cue.min() + 1e-6) / (cue.max() - cue.min())


def likeliest(near: np.ndarray, wanted: np.ndarray, keep: int) -> list[int]:
    """The token that raises the determinant most, by determinants."""
    kernel, picked = wanted[:, None] * near * wanted[None, :], []
    for _ in range(keep):
        gains = {
            i: np.linalg.slogdet(kernel[np.ix_([*picked, i], [*picked, i])])[1]
            for i in range(len(wanted))
            if i not in picked
        }
        picked.append(max(gains, key=lambda i: (gains[i], -i)))
    return sorted(picked)


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        ({}, -1),
        ({"relevance": "none"}, 0),
        ({"relevance": "embeddings"}, 1),
        ({"sign": "positive"}, 1),
        ({"theta": "0.8"}, -1),
    ],
    ids=str,
)
def test_cdpruner_raises_the_determinant_most(bench, options, sign):
    here, method = bench((6, 6)), methods.load("cdpruner", options)
    for seed, keep in enumerate((1, 3, 10, 20)):
        inputs = here.inputs(method, seed)
        wanted = np.ones(here.size)
        if sign:
            clip = "clip_image" in inputs
            patches, text = (
                inputs[name][0].double()
                for name in (("clip_image", "clip_text") if clip else ("projected", "text_embeds"))
            )
            cosine = torch.cosine_similarity(patches[:, None], text[None], dim=-1).mean(1)
            wanted = stretched(sign * cosine.numpy())
        if method.theta is not None:
            wanted = np.exp(method.theta / (2 * (1 - method.theta)) * wanted)
        kept = here.reduce(method, inputs, keep)[1][0].tolist()
        assert kept == likeliest(cosines(inputs["projected"]), wanted, keep), (seed, keep)


def test_cdpruner_goes_on_when_the_picked_tokens_explain_all_others(bench):
    """More picks than dimensions: the rest follow by relevance."""
    here, method = bench(width=6), methods.load("cdpruner")
    inputs = here.inputs(method, 0)
    relevance = method.wanted(inputs["projected"], {tap: inputs[tap] for tap in method.taps(here.spec)})[0]
    spanning, more = (set(here.reduce(method, inputs, keep)[1][0].tolist()) for keep in (6, 20))
    others = [i for i in relevance.argsort(descending=True).tolist() if i not in spanning]
    assert more == spanning | set(others[:14])


def test_cdpruner_without_a_question_is_diversity_alone(bench):
    here = bench()
    method, plain = methods.load("cdpruner"), methods.load("cdpruner", {"relevance": "none"})
    inputs = here.inputs(method, 0)
    silent = inputs | {"clip_text": torch.zeros_like(inputs["clip_text"][:, :1])}
    without = here.reduce(plain, inputs, 32)[1]
    assert torch.equal(here.reduce(method, silent, 32)[1], without)
    assert not torch.equal(here.reduce(method, inputs, 32)[1], without)
