"""Measure the accuracy of some methods on held-out scenes, in every precision that ONNX Runtime runs.

    python scripts/accuracy_precision.py --docs docs

The code is in ``evaluation/precision.py``.
"""

from __future__ import annotations

import sys

from evaluation.precision import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
