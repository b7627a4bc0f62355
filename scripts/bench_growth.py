"""Measure how the cost of a language model grows with the number of rows, in prefill and in decode.

    python scripts/bench_growth.py BUNDLE --threads 2 --plot docs/growth.png

The code is in ``speed/growth.py``.
"""

from __future__ import annotations

from speed.growth import main

if __name__ == "__main__":
    main()
