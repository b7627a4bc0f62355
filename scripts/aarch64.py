"""Check that a bundle answers with the same tokens on emulated aarch64 as on this machine.

    python scripts/aarch64.py BUNDLE [--suite bookworm trixie] [--work DIR]          as root

The code is in ``maintenance/aarch64.py``.
"""

from __future__ import annotations

import sys

from maintenance.aarch64 import main

if __name__ == "__main__":
    sys.exit(main())
