"""Quantized checkpoints: reads 4-bit GPTQ, AWQ and compressed-tensors weights without quantizing them again.

A packing turns the stored tensors of one module into the ``Quantized`` that every dialect supports
(``calib/schemes/quantized.py``). K is the number of inputs, N of outputs, G of groups. A 32-bit word holds
eight 4-bit values, lowest bits first.

* ``gptq`` (AutoGPTQ, GPTQModel): ``qweight [K/8,N]``, ``qzeros [G,N/8]``, ``scales [G,N]``, and ``g_idx
  [K]``, the group of each input. Values and zeros are unsigned; the first version of the format stores zeros
  minus one. With ``desc_act`` the groups collect inputs by importance: rows are sorted by group here, and
  graphs gather their inputs in that order.
* ``awq`` (AutoAWQ, version gemm): ``qweight [K,N/8]``, ``qzeros [G,N/8]``, ``scales [G,N]``. The values of a
  word belong to columns 0, 2, 4, 6, 1, 3, 5, 7. They are unsigned and always have zeros.
* ``compressed-tensors``, format pack-quantized (llm-compressor): ``weight_packed [N,K/8]``, ``weight_scale
  [N,G]``, ``weight_zero_point [N/8,G]`` for asymmetric weights, ``weight_g_idx [K]`` for activation order.
  Values are signed and stored plus 8.

Scales become float16. The group size is 32, 64, 128 or a multiple of one of them, up to whole columns (group
size -1). Scales of larger groups are repeated per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from foveate.calib.schemes import int4
from foveate.calib.schemes.quantized import Quantized
from foveate.engines.errors import UserError

__all__ = ["Packing", "packing"]

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_REMEDY = "use the unquantized checkpoint; foveate quantizes it itself"

Arrays = Mapping[str, np.ndarray]
"""The tensors of one module by the last part of their names: integers unchanged, scales in float32."""


class Packing(Protocol):
    """A storage format of quantized weights."""

    @property
    def name(self) -> str:
        """The format's name in ``quant_method``."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors of a module. A module that has the first one is quantized."""
        ...

    @property
    def extra(self) -> tuple[str, ...]:
        """Tensors that repeat what the config says and are not read."""
        ...

    def read(self, arrays: Arrays) -> Quantized:
        """Return the weights. Raises ValueError, with the reason, when the arrays do not fit together."""
        ...


@dataclass(frozen=True)
class _Gptq:
    stored_less_one: bool
    name: str = "gptq"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    extra: tuple[str, ...] = ()

    def read(self, arrays: Arrays) -> Quantized:
        values = _nibbles(arrays["qweight"].T).T  # words run down the inputs
        zeros = _nibbles(arrays["qzeros"])
        if self.stored_less_one:
            zeros = (zeros + 1) & 0xF
        return _grouped(values, arrays["scales"], zeros, arrays.get("g_idx"))


@dataclass(frozen=True)
class _Awq:
    name: str = "awq"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    extra: tuple[str, ...] = ()

    def read(self, arrays: Arrays) -> Quantized:
        columns = np.argsort(_AWQ_COLUMNS)

        def restore(words: np.ndarray) -> np.ndarray:
            values = _nibbles(words)
            return values.reshape(len(values), -1, 8)[..., columns].reshape(values.shape)

        return _grouped(restore(arrays["qweight"]), arrays["scales"], restore(arrays["qzeros"]))


@dataclass(frozen=True)
class _CompressedTensors:
    name: str = "compressed-tensors"
    parts: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
    extra: tuple[str, ...] = ("weight_shape",)

    def read(self, arrays: Arrays) -> Quantized:
        values, zeros = _nibbles(arrays["weight_packed"]).T, arrays.get("weight_zero_point")
        if zeros is not None:
            zeros = _nibbles(zeros.T)
        return _grouped(values, arrays["weight_scale"].T, zeros, arrays.get("weight_g_idx"))


def packing(config: Mapping[str, Any], label: str) -> Packing | None:
    """Return the format of a checkpoint's quantized weights from its ``config.json``; None if it has none.

    Raises UserError, with the name of the setting, for a format that cannot be read.
    """
    given = config.get("quantization_config")
    if given is None:
        return None
    method = given.get("quant_method")
    kinds = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    _demand(label, "quant_method", method, *kinds)
    return kinds[method](given, label)


def _gptq(given: Mapping[str, Any], label: str) -> Packing:
    form = given.get("checkpoint_format") or "gptq"
    _demand(label, "bits", given.get("bits"), 4)
    _demand(label, "checkpoint_format", form, "gptq", "gptq_v2")
    _demand(label, "is_marlin_format", given.get("is_marlin_format", False), False)
    _demand(label, "dynamic (bits by module)", given.get("dynamic") or None, None)
    return _Gptq(stored_less_one=form == "gptq")


def _awq(given: Mapping[str, Any], label: str) -> Packing:
    _demand(label, "bits", given.get("bits", given.get("w_bit")), 4)
    _demand(label, "version", str(given.get("version", "gemm")).lower(), "gemm")
    _demand(label, "zero_point", given.get("zero_point", True), True)
    return _Awq()


def _compressed_tensors(given: Mapping[str, Any], label: str) -> Packing:
    for group in given.get("config_groups", {}).values():
        weights = group.get("weights") or {}
        _demand(label, "format", group.get("format") or given.get("format"), "pack-quantized")
        _demand(label, "weights.num_bits", weights.get("num_bits"), 4)
        _demand(label, "weights.type", weights.get("type"), "int")
        _demand(label, "weights.strategy", weights.get("strategy"), "group", "channel")
        _demand(label, "input_activations", group.get("input_activations"), None)
    _demand(label, "kv_cache_scheme", given.get("kv_cache_scheme"), None)
    _demand(label, "sparsity_config", (given.get("sparsity_config") or {}).get("format", "dense"), "dense")
    return _CompressedTensors()


def _demand(label: str, key: str, got: object, *allowed: object) -> None:
    if got not in allowed:
        expected = ", ".join(map(str, allowed))
        raise UserError(
            f"{label} is quantized in a way that cannot be read | quantization_config has {key} {got}, "
            f"expected {expected} | {_REMEDY}"
        )


def _nibbles(words: np.ndarray) -> np.ndarray:
    """Unpack int32 ``[R,M]`` to its unsigned 4-bit values, uint8 ``[R,8M]``, lowest bits first."""
    raw = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    values = np.empty((*raw.shape, 2), np.uint8)
    values[..., 0], values[..., 1] = raw & 0xF, raw >> 4
    return values.reshape(len(words), -1)


def _grouped(
    values: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, groups: np.ndarray | None = None
) -> Quantized:
    """Return the weights with rows sorted by group and scales per block.

    ``values [K,N]`` and ``zeros [G,N]`` are unsigned. ``groups [K]`` is the group of each input; None means
    that groups are consecutive. Raises ValueError when shapes or groups do not fit.
    """
    count, inputs = len(scales), len(values)
    size = inputs // count
    block = int4.block_size(size)
    if size * count != inputs or block is None:
        raise ValueError(f"{count} groups for {inputs} inputs, expected groups of a multiple of 32")
    shapes = {values.shape[1:], scales.shape[1:], *(() if zeros is None else (zeros.shape[1:],))}
    if len(shapes) > 1 or (zeros is not None and len(zeros) != count):
        raise ValueError(f"scales {scales.shape} do not belong to weights {values.shape}")
    order = None
    if groups is not None and (groups != np.arange(inputs) // size).any():
        if (np.bincount(groups, minlength=count) != size).any():
            raise ValueError(f"groups of other sizes than {size} inputs")
        order = np.argsort(groups, kind="stable")
        values = values[order]
    if zeros is not None:
        zeros = None if (zeros == 8).all() else zeros.astype(np.int8) - np.int8(8)
    scales = np.repeat(scales, size // block, axis=0)
    if zeros is not None:
        zeros = np.repeat(zeros, size // block, axis=0)
    halves = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(halves).all():
        raise ValueError(f"a scale of {np.abs(scales).max():g}, expected what float16 holds")
    return Quantized(np.ascontiguousarray(values).astype(np.int8) - np.int8(8), halves, zeros, order)
