"""CUDA's runtime in host memory."""

from __future__ import annotations

import sys

from cuda_double import Cuda

sys.modules[__name__] = Cuda()
