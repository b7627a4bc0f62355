"""The language model at work: positions, prefill in pieces, and its cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorder import Recorder

from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.runtime.images.token_layout import single
from foveate.runtime.llm.kv_cache import KVCache
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.pipeline import Pipeline


def test_positions_of_merged_rows(make_bundle) -> None:
    from foveate.runtime.compiling.compile import compile_bundle

    root = make_bundle(mode="keep")
    compile_bundle(root)
    decoder = Pipeline.load(root).decoder()
    image = VisualTokens(None, np.array([-1, 2, -1, 9]), single((1, 16)))
    assert decoder._positions([5, image, 6]).tolist() == [0, 1, 3, 3, 10, 17]
    assert decoder.extent([image]) == (4, 16)


def test_prefill_in_chunks_is_prefill_at_once(bundle: Path) -> None:
    """A prompt is run in pieces where an engine's profile is shorter."""
    items = np.random.default_rng(0).integers(0, 256, 50).tolist()
    decoders = [Pipeline.load(bundle).decoder() for _ in range(2)]
    decoders[1]._most = 7
    whole, chunked = (decoder.prefill(items, 4).logits.numpy() for decoder in decoders)
    np.testing.assert_allclose(chunked, whole, atol=1e-5)
    np.testing.assert_allclose(*(decoder.step(9).numpy() for decoder in decoders), atol=1e-5)
    assert decoders[1].length == 51


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_cache_that_cannot_grow_is_empty(
    bundle: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Pipeline.load(bundle).decoder()
    whole = decoder.prefill([1, 2, 3], 2).logits.numpy()
    allocate, calls = decoder.segments[0].engine.allocate, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise error
        return allocate(*args)

    monkeypatch.setattr(decoder.segments[0].engine, "allocate", fail)
    with pytest.raises(UserError if error is MemoryError else error):
        decoder.prefill([1, 2, 3, 4, 5, 6], 9)
    cache = decoder.segments[0].cache
    assert (cache.capacity, cache.length, decoder.allocated) == (0, 0, 0)
    assert decoder.reuse([1, 2, 3]) == 0
    np.testing.assert_allclose(decoder.prefill([1, 2, 3], 2).logits.numpy(), whole, atol=1e-6)


def test_a_cache_as_long_as_the_engine_says() -> None:
    def engine(rows: int | Symbol) -> Recorder:
        past = TensorSpec("past.0.key", "float32", (1, 2, rows, 4))
        return Recorder(
            GraphSpec(
                "llm", (past,), (replace(past, name="present.0.key"),), (("present.0.key", "past.0.key"),)
            )
        )

    settled = KVCache(engine(64))
    settled.reserve(10)
    assert (settled.capacity, settled.limit, settled.allocated) == (64, 64, 64 * 2 * 4 * 4)
    settled.length = 16
    assert settled.used == settled.allocated // 4
    free = KVCache(engine(Symbol("cache", 1, 8, 100)))
    free.reserve(10)
    assert (free.capacity, free.limit) == (10, 100)
    free.feeds()["past.0.key"].array[:] = 7
    free.length = 10
    free.reserve(5)
    assert free.capacity == 10
    free.reserve(12)
    assert free.feeds()["past.0.key"].array[0, 0, :, 0].tolist() == [7] * 10 + [0, 0]
    free.cut(3)
    free.cut(8)
    assert free.length == 3
