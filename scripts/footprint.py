"""Measure the device side in a fresh environment: size on disk per package, and import times.

    python scripts/footprint.py [--python python3.10] [--runs 10]

The code is in ``maintenance/footprint.py``.
"""

from __future__ import annotations

import sys

from maintenance.footprint import main

if __name__ == "__main__":
    sys.exit(main())
