"""Read and change ONNX files without the onnx package, which devices do not have.

``fix_dimensions`` replaces named dimensions by numbers. ``external_files`` finds the files of external data.

TensorRT needs the cache's length as a number when it parses, and only the device knows how long it should be.
A protobuf message is a list of (tag, payload) fields. This module walks down to the fields that it needs and
copies the rest. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["external_files", "fix_dimensions"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DIM_VALUE, _DIM_PARAM = 1, 2

# ModelProto.graph > input, output, value_info > type > tensor_type > shape > dim
_PATH: tuple[frozenset[int], ...] = tuple(
    map(frozenset, ({7}, {11, 12, 13}, {2}, {1}, {2}, {1})),
)


def fix_dimensions(model: bytes, sizes: dict[str, int]) -> bytes:
    """Return the serialized ModelProto with each dimension named in ``sizes`` set to its size.

    Raises ValueError.
    """
    return _rewrite(model, 0, {name.encode(): size for name, size in sizes.items()})


def external_files(model: bytes) -> set[str]:
    """Return the names of the external data files of a serialized ModelProto, as it spells them.

    Tensors that the ModelProto holds itself have no file. Raises ValueError.
    """
    return {name.decode(errors="replace") for name in _locations(model, "model")}


# kind of message -> {field number: kind of message inside}, for every place that can hold a tensor
_HOLDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def _locations(message: bytes, kind: str) -> Iterator[bytes]:
    if kind == "entry":
        pair = {number: message[payload:end] for number, _, _, payload, end in _fields(message)}
        if pair.get(1) == b"location":
            yield pair.get(2, b"")
        return
    for number, wire, _, payload, end in _fields(message):
        if wire == _BYTES and number in _HOLDS[kind]:
            yield from _locations(message[payload:end], _HOLDS[kind][number])


def _rewrite(message: bytes, depth: int, sizes: dict[bytes, int]) -> bytes:
    if depth == len(_PATH):
        return _dimension(message, sizes)
    parts = []
    for number, kind, start, payload, end in _fields(message):
        if kind == _BYTES and number in _PATH[depth]:
            inner = _rewrite(message[payload:end], depth + 1, sizes)
            parts += [_varint(number << 3 | _BYTES), _varint(len(inner)), inner]
        else:
            parts.append(message[start:end])
    return b"".join(parts)


def _dimension(message: bytes, sizes: dict[bytes, int]) -> bytes:
    for number, _, _, payload, end in _fields(message):
        if number == _DIM_PARAM and message[payload:end] in sizes:
            return _varint(_DIM_VALUE << 3 | _VARINT) + _varint(sizes[message[payload:end]])
    return message


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield field number, wire type, and three offsets: start of the field, start of its payload, end."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind, payload = tag & 7, at
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            size, payload = _read_varint(message, at)
            at = payload + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"not an ONNX file | wire type {kind} at byte {start}, expected 0, 1, 2 or 5")
        if at > len(message):
            raise ValueError(
                f"the ONNX file is cut short | field at byte {start} ends at {at} of {len(message)}"
            )
        yield tag >> 3, kind, start, payload, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError(f"the ONNX file is cut short | a number at byte {at} has no end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
