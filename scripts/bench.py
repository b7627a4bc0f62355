"""Run ``foveate bench``, and time ``foveate run`` to its first word with a cold and a warm page cache.

    python scripts/bench.py bundles/llava-1.5-7b.sppruner.int4 --keep 100% 22.2% 11.1% --rounds 5

The code is in ``speed/startup.py``.
"""

from __future__ import annotations

import sys

from foveate.engines.errors import UserError
from speed.startup import main

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench: {error}")
