"""Compares a loaded plan with the spec that its buffers are made from."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from foveate.engines.spec import GraphSpec, TensorSpec

__all__ = ["difference"]

# TensorRT's dtypes -> NumPy's. What TensorRT reads or writes elsewhere would be read as something else.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{name.upper(): name for name in ("int8", "uint8", "int32", "int64")},
}


def difference(trt: ModuleType, engine: Any, spec: GraphSpec) -> str | None:
    """Return the first tensor that differs as "got, expected", or None.

    Names, dtypes and fixed dimensions must be equal. An output that the plan writes to the memory of an input
    must be one that the spec writes there. The reverse is allowed: older versions do not tell.
    """
    modes = trt.TensorIOMode
    for mode, tensors in ((modes.INPUT, spec.inputs), (modes.OUTPUT, spec.outputs)):
        for tensor in tensors:
            if engine.get_tensor_mode(tensor.name) != mode:
                return f"it has no {mode.name.lower()} {tensor.name}, expected {tensor.describe()}"
            if fault := _tensor(engine, tensor):
                return fault
    if (count := engine.num_io_tensors) != len(spec.inputs) + len(spec.outputs):
        names = {engine.get_tensor_name(index) for index in range(count)}
        return f"it has {', '.join(sorted(names - {t.name for t in (*spec.inputs, *spec.outputs)}))} as well"
    return _alias(engine, spec)


def _tensor(engine: Any, tensor: TensorSpec) -> str | None:
    kind = engine.get_tensor_dtype(tensor.name).name
    shape = tuple(engine.get_tensor_shape(tensor.name))
    fits = len(shape) == len(tensor.shape) and all(
        size in (-1, dim) or not isinstance(dim, int) for size, dim in zip(shape, tensor.shape, strict=True)
    )
    if fits and _DTYPES.get(kind) == tensor.dtype:
        return None
    return f"{tensor.name} is {_DTYPES.get(kind, kind)}{list(shape)}, expected {tensor.describe()}"


def _alias(engine: Any, spec: GraphSpec) -> str | None:
    if not hasattr(engine, "get_aliased_input_tensor"):  # TensorRT before 10.15 has no such outputs
        return None
    expected = {} if spec.appends else dict(spec.in_place)
    for tensor in spec.outputs:
        into = engine.get_aliased_input_tensor(tensor.name)
        if into and into != expected.get(tensor.name):
            where = expected.get(tensor.name, "memory of its own")
            return f"{tensor.name} is written to the memory of {into}, expected {where}"
    return None
