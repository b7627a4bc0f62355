"""Power and energy, sampled from the board's monitors while something runs.

    with Sampler() as energy:
        answer = pipe.generate(...)
    if energy.joules is not None:
        print(energy.joules, energy.joules / len(answer.tokens))

Sources, in this order: INA3221 monitors through Linux' hwmon (mV and mA; Jetsons up to Orin), then
jetson-stats if it is installed and its service runs (mW; also Thor, which has another monitor). On a machine
with neither, ``joules`` is None: no number is made up.

The power of the whole module is that of the rail ``VDD_IN`` if there is one (Orin NX and Nano). Otherwise
(AGX Orin) it is the sum of all rails, as in jetson-stats. A rail that feeds another one would then
count twice.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

__all__ = ["Rails", "Sampler", "find"]

_TOTAL = "VDD_IN"
_EVERY = 0.05  # seconds; the monitors average over some milliseconds

Read = Callable[[], dict[str, float]]
"""A function that returns watts by rail, and for the whole module as "total"."""


class Rails:
    """The INA3221 rails below ``root``. Without any, the object is empty and therefore falsy."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files: list[tuple[str, Path, Path]] = []
        for chip in sorted((root / "sys/class/hwmon").glob("*")):
            if _text(chip / "name") == "ina3221":
                self._files += self._channels(chip)

    @staticmethod
    def _channels(chip: Path) -> list[tuple[str, Path, Path]]:
        found = []
        for number in (1, 2, 3):  # channel 7 is the sum of the shunts
            label = _text(chip / f"in{number}_label")
            files = chip / f"in{number}_input", chip / f"curr{number}_input"
            if label and label != "NC" and all(file.is_file() for file in files):
                found.append((label, *files))
        return found

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self) -> dict[str, float]:
        """Return the present watts. Raises OSError or ValueError if a monitor does not answer."""
        watts = {
            label: int(volt.read_text()) * int(current.read_text()) / 1e6
            for label, volt, current in self._files
        }
        return {**watts, "total": watts.get(_TOTAL, sum(watts.values()))}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _jetson_stats() -> Read | None:
    """Return a reader through jtop, or None if it is not installed or its service does not answer."""
    try:
        board = importlib.import_module("jtop").jtop()
        board.daemon = True  # jtop is a thread; without this it would keep the process from ending
        board.start()
    except Exception:  # noqa: BLE001  jtop's own errors, and whatever a broken service raises
        return None

    def read() -> dict[str, float]:
        power = board.power
        watts = {name: rail["power"] / 1e3 for name, rail in power["rail"].items()}
        return {**watts, "total": power["tot"]["power"] / 1e3}

    return read


def find(root: Path = Path("/")) -> Read | None:
    """Return a reader of watts for this machine, or None."""
    return rails if (rails := Rails(root)) else _jetson_stats()


class Sampler:
    """Measures energy during a ``with`` block, by the trapezoid rule.

    ``joules`` is None if there is no monitor, and if there are fewer than two samples (a short block, or a
    silent monitor).
    """

    def __init__(self, read: Read | None = None, every: float = _EVERY) -> None:
        self._read = find() if read is None else read
        self._every = every
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:  # noqa: PYI034, Self is in typing from Python 3.11 on
        self._samples.clear()
        self._stop.clear()
        if self._read is not None:
            self._sample()
            self._thread = threading.Thread(target=self._loop, daemon=True, name="power")
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._sample()

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            self._sample()

    def _sample(self) -> None:
        assert self._read is not None  # without a monitor nothing is sampled
        try:
            watts = self._read()
        except (OSError, ValueError):  # the monitor is busy; the trapezoid rule bridges the missing sample
            return
        self._samples.append((time.perf_counter(), watts))

    @property
    def seconds(self) -> float:
        """Return the seconds from the first sample to the last."""
        return self._samples[-1][0] - self._samples[0][0] if self._samples else 0.0

    @property
    def joules(self) -> float | None:
        """Return the energy of the whole machine in joules, or None without a monitor of it."""
        return self.rail_joules.get("total")

    @property
    def watts(self) -> float | None:
        """Return the mean power during the block, or None."""
        return self.joules / self.seconds if self.joules is not None and self.seconds else None

    @property
    def rail_joules(self) -> dict[str, float]:
        """Return joules by rail and in "total"; empty if nothing was measured."""
        return self.since(0.0)

    def since(self, moment: float) -> dict[str, float]:
        """Return ``rail_joules`` from ``moment`` on, a time of ``time.perf_counter``.

        Power is interpolated linearly between two samples.
        """
        pairs = [pair for pair in pairwise(self._samples) if pair[1][0] > moment]
        if not pairs:
            return {}
        (t0, w0), (t1, w1) = pairs[0]
        if t0 < moment:
            share = (moment - t0) / (t1 - t0)
            pairs[0] = (moment, {name: w0[name] + share * (w1[name] - w0[name]) for name in w0}), (t1, w1)
        return {
            name: sum((t1 - t0) * (w0[name] + w1[name]) / 2 for (t0, w0), (t1, w1) in pairs) for name in w0
        }
