"""The devices and JetPacks of ``devices.json``, with their sources.

In the file, memory is in GB as NVIDIA sells it, and bandwidth in GB/s. Rates are dense TFLOPS or TOPS of the
GPU alone, since DLAs do not decode. They are with FP32 accumulation if NVIDIA distinguishes. Orins are given
by SMs and clock. Their rates follow from the 4096 INT8 operations per SM and clock in NVIDIA's technical
brief. So a Super mode differs only in clock and bandwidth.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError, unknown

__all__ = ["DEVICES", "JETPACKS", "Device", "JetPack", "device", "in_mode", "jetpack_named", "jetpack_of"]

_ORIN_INT8 = 4096  # dense operations per SM and clock; FP16 has half of it; no FP8 before Ada


@dataclass(frozen=True)
class Device:
    """A device: bandwidth in bytes/s, rates in operations/s.

    ``mode`` is the power mode in which these are reached, or None for a device without power modes.
    """

    name: str
    title: str
    memory: int  # bytes, as sold
    bandwidth: float
    fp16: float
    int8: float
    fp8: float | None
    capability: str
    mode: str | None
    sources: tuple[str, ...]

    @property
    def is_jetson(self) -> bool:
        """True for a Jetson, where CPU and GPU share the memory."""
        return self.mode is not None


@dataclass(frozen=True)
class JetPack:
    """A release of JetPack and the versions of what it contains."""

    jetpack: str
    l4t: str
    cuda: str
    tensorrt: str
    python: str
    glibc: str
    ubuntu: str
    sources: tuple[str, ...]


@cache
def _data() -> dict[str, Any]:
    return json.loads(Path(__file__).parents[1].joinpath("data", "devices.json").read_text(encoding="utf-8"))


def _device(name: str, row: dict[str, Any]) -> Device:
    if "sms" in row:
        int8 = row["sms"] * row["mhz"] * 1e6 * _ORIN_INT8
        rates = {"int8": int8, "fp16": int8 / 2, "fp8": None, "capability": "8.7"}
    else:
        rates = {key: row[key] * 1e12 for key in ("fp16", "int8")}
        rates |= {"fp8": row["fp8"] * 1e12 if "fp8" in row else None, "capability": row["capability"]}
    return Device(
        name,
        row["title"],
        row["memory_gb"] * 2**30,
        row["bandwidth"] * 1e9,
        **rates,
        mode=row.get("mode"),
        sources=tuple(_data()["sources"][key] for key in row["sources"]),
    )


DEVICES: dict[str, Device] = {name: _device(name, row) for name, row in _data()["devices"].items()}

JETPACKS: tuple[JetPack, ...] = tuple(
    JetPack(**{**row, "sources": tuple(_data()["sources"][key] for key in row["sources"])})
    for row in _data()["jetpacks"]
)


def device(name: str) -> Device:
    """Return the device ``name``. Raises UserError for an unknown name."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def in_mode(device: Device, mode: str | None = None) -> Device:
    """Return ``device`` in a power mode, with the mode's SMs, clock and bandwidth.

    ``mode`` None means the module's default mode, or the mode of the table if no default is known. Raises
    UserError for a mode that is not known of the device.
    """
    row = _data()["devices"][device.name]
    modes = row.get("modes", {})
    known = [*modes] or ([device.mode] if device.mode else [])
    mode = mode or row.get("default_mode") or device.mode
    if mode is not None and mode not in known:
        raise UserError(
            f"{device.title} has no known power mode {mode!r} | known: {', '.join(known) or 'none'} "
            "| choose one of these, or leave out --mode",
            code=2,
        )
    return _device(device.name, row | modes[mode] | {"mode": mode}) if mode in modes else device


def jetpack_of(l4t: str) -> JetPack | None:
    """Return the JetPack of an L4T version such as "36.4.7", or None if it is unknown.

    It is the newest one in the table with the same major number and no newer L4T.
    """
    asked = _numbers(l4t)
    known = [j for j in JETPACKS if _numbers(j.l4t)[0] == asked[0] and _numbers(j.l4t) <= asked]
    return max(known, key=lambda j: _numbers(j.l4t), default=None)


def jetpack_named(version: str) -> JetPack:
    """Return the JetPack of a version such as "6.2" or "6.2.3".

    A patch release that is not in the table has the versions of the newest one before it with the same two
    numbers. Raises UserError for any other version.
    """
    if re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
        asked = _numbers(version)
        family = [
            j for j in JETPACKS if _numbers(j.jetpack)[:2] == asked[:2] and _numbers(j.jetpack) <= asked
        ]
        if family:
            return max(family, key=lambda j: _numbers(j.jetpack))
    known = ", ".join(j.jetpack for j in JETPACKS)
    raise UserError(
        f"JetPack {version!r} is not supported | supported: {known}, and patch releases of these "
        "| flash the device with one of them, and name it",
        code=2,
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
