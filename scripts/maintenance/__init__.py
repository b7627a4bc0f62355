"""Care of the repository: releases, and checks that are not tests.

hops                 scripts/hops.py: the files that one question goes through
release              scripts/release.py: the files of a release, tried in fresh environments
matrix               scripts/matrix.py and docs/engines-matrix.md: every method, family and dialect
footprint, peak      scripts/footprint.py, scripts/peak.py: installed size, import time, peak memory
gpu_target           what scripts/gpu_check.sh compiles for, and what pip installs for it
quantization_error   scripts/quantization_error.py: the error of each scheme in a layer of full size
aarch64, watch_soak  scripts/aarch64.py, scripts/watch_soak.py: an emulated arm64 Debian
"""
