"""TensorRT of a machine that has none: put this folder first on PYTHONPATH. See ``tensorrt_double``."""

from __future__ import annotations

import os
import sys

from cuda.bindings import runtime
from tensorrt_double.binding import Binding

found = Binding(runtime, os.environ.get("DOUBLE_VERSION", "10.16.1.11"))
found.refuses = os.environ.get("DOUBLE_REFUSES", found.refuses)
sys.modules[__name__] = found
