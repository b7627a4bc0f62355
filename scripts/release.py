"""``make release``: wheel, sdist, tested constraints, SBOMs and SHA256SUMS, tried in fresh environments.

The code is in ``maintenance/release.py``.
"""

from __future__ import annotations

import sys

from maintenance.release import main

if __name__ == "__main__":
    sys.exit(main())
