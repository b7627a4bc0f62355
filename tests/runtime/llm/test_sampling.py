from __future__ import annotations

import warnings

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.sampling import Sampler, Sampling

LOGITS = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 2


def reference(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The probability of every token, by the definitions and loops."""
    weights = np.exp(logits.astype(np.float64) / temperature)
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    allowed = order[:top_k] if top_k else order
    if top_p is not None:
        total, reached, few = sum(weights[i] for i in allowed), 0.0, []
        for i in allowed:
            few.append(i)
            reached += weights[i] / total
            if reached >= top_p:
                break
        allowed = few
    chances = np.zeros(len(logits))
    chances[allowed] = weights[allowed] / weights[allowed].sum()
    return chances


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 500])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.01, 0.6, 0.95, 1.0])
def test_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    sampler = Sampler(Sampling(temperature, top_p, top_k))
    ids, chances = sampler.distribution(Logits(LOGITS))
    expected = reference(LOGITS, temperature, top_k, top_p)
    got = np.zeros(len(LOGITS))
    got[ids] = chances
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert len(set(ids.tolist())) == len(ids)


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(1.0, top_k=6, seed=0))
    counts = np.bincount([sampler(Logits(LOGITS)) for _ in range(20_000)], minlength=50) / 20_000
    np.testing.assert_allclose(counts, reference(LOGITS, 1.0, 6, None), atol=0.012)


def test_greedy_and_nearly_cold() -> None:
    assert Sampler(Sampling())(Logits(LOGITS)) == LOGITS.argmax()
    assert Sampler(Sampling(1e-6, seed=0))(Logits(LOGITS)) == LOGITS.argmax()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cold in (1e-300, 1e-320):  # differences of logits divided by the second are infinite
            assert Sampler(Sampling(cold, seed=0))(Logits(LOGITS)) == LOGITS.argmax()


def test_equal_scores_keep_exactly_k() -> None:
    ids, _ = Sampler(Sampling(1.0, top_k=3)).distribution(Logits(np.zeros(9, np.float32)))
    assert len(ids) == 3


def test_half_precision_logits() -> None:
    assert Sampler(Sampling(1.0, seed=3))(Logits(LOGITS.astype(np.float16))) in range(50)


def test_seeds() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=seed))
        return [sampler(Logits(LOGITS)) for _ in range(30)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"top_k": 0},
        {"seed": -1},
    ],
)
def test_values_out_of_range(wrong: dict) -> None:
    with pytest.raises(UserError) as error:
        Sampling(**wrong)
    assert error.value.code == 2
    assert str(next(iter(wrong.values()))) in str(error.value)
