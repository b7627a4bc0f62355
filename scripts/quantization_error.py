"""Measure the error of each quantization scheme in a random decoder layer of full size with planted outliers.

    python scripts/quantization_error.py [--factor 30 100] [--hidden 4096 --intermediate 11008 --heads 32]

The code is in ``maintenance/quantization_error.py``.
"""

from __future__ import annotations

import sys

from maintenance.quantization_error import main

if __name__ == "__main__":
    sys.exit(main())
