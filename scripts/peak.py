"""Run a command and print its wall time and the peak resident memory of its largest process.

    python scripts/peak.py foveate build --model llava-1.5-7b --method sppruner --load-format dummy
    sudo python scripts/peak.py --within 11e9 foveate run BUNDLE "What is this?" --image street.jpg

The code is in ``maintenance/peak.py``.
"""

from __future__ import annotations

import sys

from maintenance.peak import main

if __name__ == "__main__":
    sys.exit(main())
