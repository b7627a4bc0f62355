"""Time bundles from the image to the first token at several budgets, next to llama.cpp at the same sizes.

    pip install gguf && pip install --no-binary llama-cpp-python llama-cpp-python
    python scripts/bench_first_token.py BUNDLE [BUNDLE ...] --keep 64 576 --threads 2

The code is in ``speed/first_token.py``.
"""

from __future__ import annotations

from speed.first_token import main

if __name__ == "__main__":
    main()
