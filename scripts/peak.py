"""Run a command and print its wall time and the peak resident memory of its largest process.

python scripts/peak.py foveate build --model llava-1.5-7b --method sppruner --load-format dummy
"""

from __future__ import annotations

import os
import resource
import sys
import time

if __name__ == "__main__":
    start = time.monotonic()
    code = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # kibibytes on Linux
    print(f"{time.monotonic() - start:.1f} s, peak {peak:.2f} GiB: {' '.join(sys.argv[1:])}", file=sys.stderr)
    sys.exit(code)
