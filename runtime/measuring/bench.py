"""Measurement of loading, memory and each stage of a compiled bundle at several budgets.

Budgets take turns, round by round, in one process after a warm-up round, so that ratios hold even on a busy
machine. Each figure is a median with the smallest and largest value of all rounds. The image is noise; it
costs a model as much as any other image of its size. On boards with power monitors
(``runtime.measuring.energy``) energy is measured as well: that of the whole machine, from the question to the
end of the answer, and the share of decoding per token.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer
from foveate.runtime.bundle.compiled import choose
from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.llm.budget import Keep
from foveate.runtime.measuring import costs
from foveate.runtime.measuring.energy import Sampler
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import Turn

__all__ = ["IMAGE_SIZE", "STAGES", "environment", "measure", "question", "resident_bytes", "table"]

STAGES = ("preprocess", "vision", "prune", "prefill", "first_token")
_BUDGETS = ("100%", "33.3%", "22.2%", "11.1%")
IMAGE_SIZE = 640, 480
"""Width and height of the image that is shown, in pixels."""
_JOULES = {"joules": "J per answer", "joules_per_token": "J per token"}

Energy = tuple[float | None, float | None]
"""Joules per answer, and joules of decoding per token. None if there is no power monitor."""


def measure(
    path: str | os.PathLike[str],
    keep: Sequence[Keep] | None = None,
    *,
    image_size: Sequence[int] = IMAGE_SIZE,
    text_tokens: int = 40,
    new_tokens: int = 16,
    rounds: int = 5,
    threads: int | None = None,
    engine: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure the bundle at ``path``: times in seconds, sizes in bytes, and FLOPs of the prefill (``costs``).

    ``image_size`` is the width and height of the image in pixels. There is one row per budget of ``keep``;
    None stands for the usual budgets, or for the only one if the bundle leaves no choice. Each time is
    [median, fastest, slowest], and so are joules, which are None if there is no power monitor. ``progress``
    gets a line for each large file that is hashed.

    Raises UserError as ``Pipeline.load`` and ``Pipeline.generate`` do.
    """
    # hash the files here, so that hashing is not counted as loading
    load(path, progress=(lambda name: progress(f"checking {name}")) if progress else None)
    start = time.perf_counter()
    pipe = Pipeline.load(path, engine, threads=threads)
    loading = time.perf_counter() - start
    if text_tokens > (most := pipe.manifest.decoder.max_positions):
        raise UserError(
            f"wrong text-tokens | got {text_tokens}, expected at most the model's {most} | leave it out",
            code=2,
        )
    made = choose(pipe.bundle, engine)
    budgets = keep or _choice(pipe.manifest)
    width, height = image_size
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    text = question(pipe, text_tokens)
    answers: list[list[Answer]] = [[] for _ in budgets]
    energies: list[list[Energy]] = [[] for _ in budgets]
    sampler = Sampler()
    for number in range(-1, rounds):  # the first round is the warm-up
        for budget, mine, energy in zip(budgets, answers, energies, strict=True):
            with sampler:
                begin = time.perf_counter()
                answer = pipe.generate(noise, text, keep=budget, max_new_tokens=new_tokens + 1)
            if number >= 0:
                mine.append(answer)
                energy.append(_energy(sampler, begin, answer))
    return {
        "bundle": pipe.manifest.name,
        "precision": asdict(pipe.manifest.precision),
        "engine": made.key,
        "environment": environment(threads),
        "load": loading,
        "bundle_bytes": sum(entry.size for entry in pipe.manifest.files.values()),
        "engine_bytes": sum(entry["size"] for entry in made.files.values()),
        "resident": resident_bytes(),
        "image_size": [width, height],
        "text_tokens": _text_tokens(pipe, text),
        "rounds": rounds,
        "rows": [
            _row(pipe.manifest, mine, answers[0]) | _joules(energy)
            for mine, energy in zip(answers, energies, strict=True)
        ],
    }


def _choice(manifest: Manifest) -> list[Keep]:
    fixed = not manifest.method.prunes or manifest.method.fixed_keep is not None
    return [None] if fixed else list(_BUDGETS)


def question(pipe: Pipeline, tokens: int) -> str:
    """Return a text that gives the prompt at least ``tokens`` text tokens, and as few more as words allow."""
    text = "What"
    while _text_tokens(pipe, text) < tokens:
        text += " is" if _text_tokens(pipe, text + " is") <= tokens else "?"
    return text


def _text_tokens(pipe: Pipeline, text: str) -> int:
    segments = pipe.tokenizer.encode_turns([Turn("user", text, images=1)])
    return sum(len(segment) for segment in segments if isinstance(segment, np.ndarray))


def _row(manifest: Manifest, mine: Sequence[Answer], whole: Sequence[Answer]) -> dict[str, Any]:
    def times(answers: Sequence[Answer], name: str) -> list[float]:
        return [getattr(answer.timings, name) for answer in answers]

    def ratio(name: str) -> float:
        return statistics.median(times(whole, name)) / statistics.median(times(mine, name))

    plan = costs.measured(manifest, mine[0].stages[0], mine[0].layouts[0].total)
    rows = mine[0].timings.prompt_rows
    speeds = [speed for speed in times(mine, "tokens_per_second") if speed]
    return {
        "keep": len(mine[0].kept[0]),
        **{stage: _spread(times(mine, stage)) for stage in STAGES},
        "step": _spread([1 / speed for speed in speeds]) if speeds else None,
        "prompt_rows": rows,
        "flops": costs.prefill_flops(manifest.decoder, plan, rows - plan[0][1]),
        "cache_bytes": mine[0].timings.cache_bytes_allocated,
        "prefill_ratio": ratio("prefill"),
        "first_token_ratio": ratio("first_token"),
    }


def _energy(sampler: Sampler, begin: float, answer: Answer) -> Energy:
    """Return joules of ``answer`` and joules per decoded token.

    ``begin`` is the time when it was asked for.
    """
    steps = answer.timings.decode * answer.timings.tokens_per_second
    decoding = sampler.since(begin + answer.timings.first_token).get("total")
    return sampler.joules, decoding / steps if decoding is not None and steps else None


def _joules(energies: Sequence[Energy]) -> dict[str, Any]:
    kinds = zip(_JOULES, zip(*energies, strict=True), strict=True)
    return {name: None if None in values else _spread(values) for name, values in kinds}


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def resident_bytes() -> dict[str, int] | None:
    """Return the bytes of this process that are in RAM, or None if the system is not Linux.

    ``anonymous`` is the process's own memory, ``mapped`` are pages of files, weights among them.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    kinds = {"anonymous": "RssAnon", "mapped": "RssFile"}
    return {kind: int(lines[name].split()[0]) << 10 for kind, name in kinds.items()}


def environment(threads: int | None) -> dict[str, Any]:
    """Return what the figures depend on besides the bundle: machine, threads, versions and load."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "foveate": version("foveate"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def table(found: dict[str, Any]) -> list[str]:
    """Return the result as lines of Markdown for people."""
    env, resident = found["environment"], found["resident"]
    memory = (
        f"; resident {resident['anonymous'] / 1e9:.2f} GB and "
        f"{resident['mapped'] / 1e9:.2f} GB of mapped files"
        if resident
        else ""
    )
    sizes = f"bundle {found['bundle_bytes'] / 1e9:.2f} GB, engine {found['engine_bytes'] / 1e9:.2f} GB"
    energy = {name: title for name, title in _JOULES.items() if any(row[name] for row in found["rows"])}
    titles = [*(f"{stage} s" for stage in STAGES), "ms per token", "cache MB", "TFLOPs", "prefill x"]
    titles += ["first token x", *energy.values()]
    lines = [
        f"{found['bundle']} in {found['engine']} on {env['machine']}, {env['threads']} threads",
        f"loaded in {found['load']:.2f} s{memory}; {sizes}",
        "",
        f"| keep | rows | {' | '.join(titles)} |",
        "|---|---|" + "---|" * len(titles),
    ]
    for row in found["rows"]:
        cells = [_cell(row[stage], 1, 3) for stage in STAGES]
        cells.append(_cell(row["step"], 1e3, 1) if row["step"] else "-")
        cells += [
            f"{row['cache_bytes'] / 1e6:.1f}",
            f"{row['flops'] / 1e12:.2f}",
            f"{row['prefill_ratio']:.2f}",
            f"{row['first_token_ratio']:.2f}",
        ]
        cells += [_cell(row[name], 1, 3) if row[name] else "-" for name in energy]
        lines.append(f"| {row['keep']} | {row['prompt_rows']} | {' | '.join(cells)} |")
    return lines


def _cell(spread: Sequence[float], scale: float, digits: int) -> str:
    middle, low, high = (f"{value * scale:.{digits}f}" for value in spread)
    return f"{middle} ({low}..{high})"
