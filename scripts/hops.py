"""Count the files that one question to a bundle goes through, and the calls from one file to another.

    python scripts/hops.py bundles/shapes

The code is in ``maintenance/hops.py``.
"""

from __future__ import annotations

import sys

from maintenance.hops import main

if __name__ == "__main__":
    sys.exit(main())
