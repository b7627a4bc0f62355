"""Show what every method keeps of one image at one budget, side by side, and what the model then answers.

    python scripts/contact_sheet.py --model scripts/shapes --image docs/scene.png \
        --question "What letter is on the sign?" --keep 64 --out docs/methods.png

The code is in ``evaluation/contact_sheet.py``.
"""

from __future__ import annotations

from evaluation.contact_sheet import main

if __name__ == "__main__":
    main()
