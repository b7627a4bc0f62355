"""Train `shapes`, the small checkpoint of the default demo, from scratch.

    python scripts/train_shapes.py --work build/shapes --out build/shapes/checkpoint

The code is in ``training/shapes/train.py``.
"""

from __future__ import annotations

from training.shapes.train import main

if __name__ == "__main__":
    main()
