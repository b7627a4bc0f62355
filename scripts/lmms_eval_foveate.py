r"""Run lmms-eval with a foveate bundle as a model.

    ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1 python scripts/lmms_eval_foveate.py \
        --model foveate --model_args bundle=bundles/llava,keep=128 --tasks pope,mme

The code is in ``evaluation/lmms_eval_model.py``.
"""

from __future__ import annotations

import sys

from evaluation.lmms_eval_model import main

if __name__ == "__main__":
    sys.exit(main())
