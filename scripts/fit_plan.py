"""Fit the efficiencies of ``foveate plan`` to published measurements, and print the errors on held-out ones.

The code is in ``generated/fit_plan.py``.
"""

from __future__ import annotations

from generated.fit_plan import main

if __name__ == "__main__":
    main()
