"""Run ``foveate watch`` on a generated video: check that its memory is flat and that frames are new.

    python scripts/watch_soak.py BUNDLE --minutes 10

The code is in ``maintenance/watch_soak.py``.
"""

from __future__ import annotations

from maintenance.watch_soak import main

if __name__ == "__main__":
    main()
