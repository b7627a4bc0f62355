"""The builder's scratch memory: activations of the largest call, in one buffer that all graphs share.

The formulas count what lives at the same time in one layer of the decoder, since layers run one after another
and share the buffer. T is the number of rows that are computed at once, S the number of rows of the kv cache,
D, I, H and G the hidden size, the MLP's size, and the numbers of heads and of kv heads. In FP16:

* ``native``, 2 T (3 I + 2 D) + 2 T S: the MLP, and the mask. A cache of many more rows than T costs more, in
  proportion to G.
* ``primitive``, 4 H T S + a H T^2 + b T D: the scores of attention, which the compiler keeps in several
  copies. If heads share keys, a and b are smaller, and there is a copy of the cached values. If T is small,
  the MLP decides: 2 T (3 I + 5.5 D).

With weights in int4 the compiler takes more: to unpack them, and in ``primitive``, if heads share keys, for
one more copy of the scores.

The formulas were fitted to the "Total Activation Memory" that TensorRT for RTX 1.7.1's builder reported for
one layer of each family's models (2026-12-01, SM86; docs/measurements/tensorrt-rtx.md). From 512 rows on they
are within 5 % of it in FP16, and 5 % below to 15 % above it in int4. So they are *simulated* for full
TensorRT, whose builder may need more or less.
"""

from __future__ import annotations

from foveate.runtime.bundle.manifest import DecoderSizes

__all__ = ["scratch"]

_WIDE = 0.163
"""Bytes of ``native`` per new row, row of the cache beyond 2 T, and kv head."""


def scratch(decoder: DecoderSizes, rows: int, cache_rows: int, dialect: str, *, int4: bool = False) -> int:
    """Return the bytes of scratch of one segment of ``decoder`` that computes ``rows`` rows at once."""
    usual, unpacking = (_primitive, _int4_primitive) if dialect == "primitive" else (_native, _int4_native)
    more = unpacking(decoder, rows, cache_rows) if int4 else 0.0
    return round(usual(decoder, rows, cache_rows) + more)


def _native(d: DecoderSizes, rows: int, cache_rows: int) -> float:
    wide = _WIDE * d.num_kv_heads * rows * max(0, cache_rows - 2 * rows)
    few = max(0, 4.5e6 - 5.9e3 * rows)
    return 2 * rows * (3 * d.intermediate_size + 2 * d.hidden_size) + 2 * rows * cache_rows + wide + few


def _primitive(d: DecoderSizes, rows: int, cache_rows: int) -> float:
    scores = 4 * d.num_heads * rows * cache_rows
    if d.num_kv_heads == d.num_heads:
        few = max(0, 12e6 - 11.7e3 * rows)
        attention = scores + 6 * d.num_heads * rows**2 + 12 * rows * d.hidden_size + few
    else:
        values = 2 * d.num_kv_heads * d.head_dim * cache_rows
        attention = scores + 4 * d.num_heads * rows**2 + 5 * rows * d.hidden_size + values
    return max(attention, 2 * rows * (3 * d.intermediate_size + 5.5 * d.hidden_size))


def _int4_native(d: DecoderSizes, rows: int, cache_rows: int) -> float:
    whole = min(24.6e6, 34e3 * rows)
    return whole if d.num_kv_heads == d.num_heads else whole / 2


def _int4_primitive(d: DecoderSizes, rows: int, cache_rows: int) -> float:
    if d.num_kv_heads == d.num_heads:
        return 3e6
    return 2 * d.num_heads * rows * cache_rows + 15.5e6
