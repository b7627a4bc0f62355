"""Convert the published pruner of OC-VTP to safetensors.

    python scripts/convert_ocvtp.py weights.pth path/to/checkpoint/ocvtp.safetensors

The code is in ``training/ocvtp/convert.py``.
"""

from __future__ import annotations

import sys

from foveate.engines.errors import UserError
from training.ocvtp.convert import main

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
