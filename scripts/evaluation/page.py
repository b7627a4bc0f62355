"""Write docs/accuracy.md and its plots from the document that scripts/accuracy.py prints."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import report
from evaluation.plots import AXES, plot

__all__ = ["write"]

_PAGE = """# Accuracy of every method

Written by `scripts/accuracy.py`; do not edit. {date}, {machine}:

```sh
{command}
```

Every method answered the same {asked} questions about synthetic scenes that the model was not trained
on (`calib/scenes/questions.py`, seeds from {first_seed} on). The model is the checkpoint `{model}` in
float32, exported to graphs and run by foveate's runtime. An answer counts only if it is exactly right.
Every method has its published defaults. The ranges in brackets are Wilson's 95 % intervals of each
number by itself. All methods answered the same questions, so the difference between two of them is
known better than these intervals suggest.

The scenes are easier for a pruner than photographs: objects cover a tenth of the image, and the vision
encoder was trained to tell which patches belong to an object ([model
card](../scripts/shapes/README.md)). The decoder has {layers} layers, so in-LLM methods have fewer
places for their cuts than in a model with 32 layers.

## Overall

Right answers in per cent, by the number of visual tokens that were asked for. The method with the
highest mean over all budgets comes first.

{overall}
{left_out}
![accuracy against tokens](accuracy-tokens.png)

![accuracy against FLOPs](accuracy-flops.png)

## By kind of question
{kinds}
## What it costs

The columns of tokens give the mean over all questions, for each part of the decoder between its cuts.
FLOPs are those of prefill, computed by `runtime/measuring/costs.py` from the number of tokens that were
really kept.
{clock}

{costs}
"""

_CLOCK = (
    "Times are from the encoded image to the first token, on one thread. They are medians over prompts. The\n"
    "shares compare each with the time of the unpruned model for the same prompt in the same round.\n\n"
    "![accuracy against time](accuracy-time.png)"
)


def write(folder: Path, document: dict[str, Any], *, kinds: Sequence[str], command: Sequence[str]) -> None:
    """Write ``accuracy.md`` and ``accuracy-*.png`` into ``folder``."""
    rows = document["rows"]
    whole = next(row for row in rows if row["method"] == "none")
    keeps = sorted({row["keep"] for row in rows} - {whole["keep"]}, reverse=True)
    timed = any(row["prefill"] for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    for axis in AXES:
        if axis != "time" or timed:
            plot(rows, axis, folder / f"accuracy-{axis}.png")
    page = _PAGE.format(
        date=datetime.date.today().isoformat(),
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        command=shlex.join(["python", *command]),
        asked=whole["asked"],
        first_seed=f"{document['first_seed']:,}",
        model=document["model"],
        layers=document["layers"],
        overall=report.by_budget(rows, whole["keep"]),
        left_out="".join(f"\n- {line}\n" for line in document["left_out"]),
        kinds="".join(
            f"\n### {keep} tokens ({100 * keep / whole['keep']:.1f} %)\n\n"
            f"{report.by_kind(rows, keep, kinds)}\n"
            for keep in keeps
        ),
        clock=_CLOCK if timed else "",
        costs=report.costs_table(rows),
    )
    (folder / "accuracy.md").write_text(page, encoding="utf-8")
