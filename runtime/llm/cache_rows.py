"""Counts the rows that the kv cache of an engine has, if the engine needs a fixed number, as TensorRT's do.

``foveate compile``, ``deploy`` and ``plan`` all ask ``cache_rows``, so they agree. The engine takes the
memory of all these rows whatever a prompt needs, and a decoding step reads all of them. So the default is
what one question about the largest image needs if no token is pruned away, since the budget is chosen when
the question is asked. Longer conversations, and more images in one, need a larger number.
"""

from __future__ import annotations

import math

import numpy as np

from foveate.engines.backend import MAX_CONTEXT
from foveate.runtime.bundle.manifest import DecoderSizes, Manifest
from foveate.runtime.llm.generation import MAX_NEW_TOKENS

__all__ = ["STEP", "TEXT_TOKENS", "cache_rows", "layer_row_bytes", "rounded_up", "told"]

TEXT_TOKENS = 40
"""Tokens of a chat template and a question of one sentence."""

STEP = 256
"""Numbers of rows that we choose are multiples of this one."""


def cache_rows(manifest: Manifest, asked: int | None = None) -> int:
    """Return the number of rows: ``asked``, or the default if that is None. The model's limit caps both.

    The default is at most ``MAX_CONTEXT``.
    """
    wanted = asked or min(rounded_up(_visual_rows(manifest) + TEXT_TOKENS + MAX_NEW_TOKENS), MAX_CONTEXT)
    return min(wanted, manifest.decoder.max_positions)


def rounded_up(rows: int) -> int:
    """Return the smallest multiple of ``STEP`` that is not below ``rows``."""
    return math.ceil(rows / STEP) * STEP


def told(manifest: Manifest, rows: int) -> str:
    """Return a line about a cache of ``rows`` rows: what it costs, and what other numbers would cost."""
    each = manifest.decoder.num_layers * layer_row_bytes(manifest.decoder)
    return (
        f"kv cache of {rows} rows: {rows * each / 1e6:.0f} MB. A prompt and its answer have at most as many; "
        f"--max-context gives it more, for {STEP * each / 1e6:.1f} MB per {STEP} rows, or fewer"
    )


def layer_row_bytes(decoder: DecoderSizes, dtype: str = "float16") -> int:
    """Return the bytes of one row of the cache in one layer: a key and a value of each head."""
    return 2 * decoder.num_kv_heads * decoder.head_dim * np.dtype(dtype).itemsize


def _visual_rows(manifest: Manifest) -> int:
    """Return the most rows of one image that enter the language model."""
    total, fixed = manifest.num_visual_tokens, manifest.method.fixed_keep
    in_one_tile = math.prod(manifest.grid) == total
    return fixed if fixed is not None and in_one_tile else total
