"""Time every pruner by itself: its graph at LLaVA-1.5-7B's widths in ONNX Runtime.

    python scripts/bench_pruners.py --keep 128 --threads 2

The code is in ``speed/pruners.py``.
"""

from __future__ import annotations

from speed.pruners import main

if __name__ == "__main__":
    main()
