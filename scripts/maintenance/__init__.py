"""Care of the repository: generated files, and checks that are not tests.

generate             scripts/generate.py: pages and data files that follow from the code
api_page, plan_methods, plan_models   docs/api.md and the data of foveate plan, written by generate
hops                 scripts/hops.py: the files that one question goes through
release              scripts/release.py: the files of a release, tried in fresh environments
matrix               scripts/matrix.py and docs/engines-matrix.md: every method, family and dialect
fit_plan             scripts/fit_plan.py: the efficiencies of foveate plan
footprint, peak      scripts/footprint.py, scripts/peak.py: installed size, import time, peak memory
gpu_target           what scripts/gpu_check.sh compiles for, and what pip installs for it
quantization_error   scripts/quantization_error.py: the error of each scheme in a layer of full size
aarch64, watch_soak  scripts/aarch64.py, scripts/watch_soak.py: an emulated arm64 Debian
"""
