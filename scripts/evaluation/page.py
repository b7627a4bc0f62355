"""Write docs/accuracy.md and its plots from the document that scripts/accuracy.py prints."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accuracy_report as report
from accuracy_plots import AXES, plot

__all__ = ["write"]

_PAGE = """# Accuracy of every method

Written by `scripts/accuracy.py`; do not edit. {date}, {machine}:

```sh
{command}
```

{asked} questions about held-out scenes (`calib/scenes/questions.py`, seeds from {first_seed} on), the same for every method, to the checkpoint
`{model}` in float32, through exported graphs and the runtime. An answer counts when it is exactly right. Every method has its
published defaults. Intervals are Wilson's, 95 %; they are of one case: two methods answered the same questions, so a
difference between them is surer than their intervals say.

The scenes are kinder to a pruner than photographs: things cover a tenth of the image, and the checkpoint's tower was taught
which patches belong to a thing ([its card](../scripts/shapes/README.md)). The decoder has {layers} layers, so methods that prune
inside it have fewer places to choose from than in a model of 32.

## Overall

Per cent of right answers by the number of visual tokens asked for; the best first, by the mean over budgets.

{overall}
{left_out}
![accuracy against tokens](accuracy-tokens.png)

![accuracy against FLOPs](accuracy-flops.png)

## By kind of question
{kinds}
## What it costs

Tokens are means over the questions, in each part of the decoder between its cuts. FLOPs are the prefill's, computed by
`runtime/measuring/costs.py` from the tokens that were really there. {clock}

{costs}
"""

_CLOCK = (
    "Time is from the encoded image to the first token, one thread: medians of prompts that the unpruned model answered in\n"
    "the same round, and their ratios to it.\n\n![accuracy against time](accuracy-time.png)"
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
