"""``make generated``: write every page and data file that is derived from the code.

The code is in ``generated/generate.py``.
"""

from __future__ import annotations

from generated.generate import main

if __name__ == "__main__":
    main()
