"""``make matrix``: test every method on every family in every dialect.

The code is in ``maintenance/matrix.py``.
"""

from __future__ import annotations

from maintenance.matrix import main

if __name__ == "__main__":
    main()
