"""Train OC-VTP's pruner for a vision encoder with the published recipe. The model itself is not changed.

    python scripts/train_ocvtp.py --model CHECKPOINT --images path/to/coco/train2017 --out CHECKPOINT
    python scripts/train_ocvtp.py --model scripts/shapes --out build/ocvtp       # synthetic scenes
    python scripts/train_ocvtp.py --model qwen2.5-vl-7b --count 20000 --out build/qwen

The code is in ``training/ocvtp/train.py``.
"""

from __future__ import annotations

import sys

from foveate.engines.errors import UserError
from training.ocvtp.train import main

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
