# make demo    a small model, built, asked and looked at, from nothing
# make test    every test but the slow ones, in an environment of its own
# make quick   the tests that need little: a meaningful part of `make test` in under two minutes on two cores
# make matrix  every method on every family, in every dialect, which takes a while; writes docs/engines-matrix.md
# make generated  writes the tables and data files that follow from the code
# make release  wheel, sdist, tested constraints, SBOMs and SHA256SUMS in dist/, tried in fresh environments
# make lint    ruff (check and format) and mypy
# make clean   removes the environment and what was built

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV   ?= .venv
# Exactly this torch first: where the index has CPU builds beside the CUDA ones, a range takes gigabytes of CUDA.
TORCH  ?= torch==2.13.0

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUNDLE := bundles/shapes.sppruner

# What `make quick` runs: the device side, calibration and the repository's rules as a whole, every method's contract in torch, and
# one model from its checkpoint to the same answers as transformers'. Two modules that start a process in each test are left out.
QUICK  := $(addprefix --ignore=tests/runtime/cli/,test_signals.py test_streams.py) \
    tests/calib tests/engines tests/jetson tests/repository tests/runtime tests/contracts/test_often.py \
    tests/end_to_end/test_an_added_backend.py tests/scripts/generated \
    tests/contracts/test_pre_llm.py::test_exactly_keep_rows tests/contracts/test_in_llm.py::test_rows_that_stay \
    "tests/end_to_end/test_same_as_transformers.py::test_same_logits_and_greedy_tokens[grouped-query]"

.PHONY: demo test quick matrix generated release lint types clean
.DELETE_ON_ERROR:

demo: $(VENV)/.export
	$(BIN)/python export/build.py --model scripts/shapes --method sppruner --precision fp32 --out $(BUNDLE)
	$(BIN)/foveate run $(BUNDLE) "What letter is on the sign?" --image docs/scene.png \
	    --timings --overlay kept.png

# A process per core with one thread each: torch's tracing and the builders use one core anyway.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup $(QUICK)

matrix: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup -m "slow or not slow"
	OMP_NUM_THREADS=1 $(BIN)/python scripts/matrix.py

generated: $(VENV)/.export
	$(BIN)/python scripts/generate.py

# The tools are installed into an environment of the release's own.
release: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python scripts/release.py

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds foveate.engines in build/typing/foveate/engines.
types: $(VENV)/.dev
	mkdir -p build/typing/foveate
	for package in engines runtime calib export jetson; do ln -sfn ../../../$$package build/typing/foveate/; done
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build bundles dist kept.png .pytest_cache .ruff_cache

# The stamps keep a second `make` from installing again; they are older than pyproject.toml when that changes.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found | make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	touch $@

$(VENV)/.export: $(VENV)/.made pyproject.toml
	$(PIP) install "$(TORCH)"
	$(PIP) install --editable '.[export]'
	touch $@

$(VENV)/.dev: $(VENV)/.export pyproject.toml
	$(PIP) install --editable '.[export,rtx,dev]'
	touch $@
