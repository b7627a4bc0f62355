"""Time a bundle's language model on the CPU next to llama.cpp and OpenVINO at the same sizes.

    pip install gguf openvino nncf && pip install --no-binary llama-cpp-python llama-cpp-python
    python scripts/bench_rivals.py BUNDLE [BUNDLE ...] --tokens 640 192 104 --threads 2

The code is in ``speed/contenders.py``.
"""

from __future__ import annotations

from speed.contenders import main

if __name__ == "__main__":
    main()
