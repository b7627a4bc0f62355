"""Test the four systems' own claims on the small checkpoint: the contribution of each part of a method.

    python scripts/claims.py                                   all of them
    python scripts/claims.py fsr sppruner --questions 500 --budgets 11.1%

The code is in ``evaluation/claims.py``.
"""

from __future__ import annotations

import sys

from evaluation.claims import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
