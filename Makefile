# make demo: the main job, end to end.    make test: the tests.    make help: the rest.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-peers test-mteb test-beam test-t5x test-compile test-buckets campaign-kills lint wheel-check bench clean install install-peers

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Memory in pages of 2 MB: see docs/performance.md.
demo bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1

demo: $(VENV)/installed  ## pretrain, mine, fine-tune, evaluate and search a small GTR on this machine (about 5 minutes)
	$(BIN)/gtr-jax demo --output demo

test: $(VENV)/installed  ## the tests, on the CPU with tiny models
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore tests/peers --ignore tests/mteb --ignore tests/beam --ignore tests/t5x --ignore tests/compile --ignore tests/buckets --durations=10

test-peers: $(VENV)/installed-peers  ## compare with torch, transformers, sentence-transformers and FAISS; serve clients of others, and a browser
	$(BIN)/python -m pytest tests/peers --durations=10

test-mteb: $(VENV)/installed-peers  ## MTEB evaluates a model, over data made here (installs mteb)
	$(PIP) install --quiet -c constraints.txt -e '.[mteb]'
	$(BIN)/python -m pytest tests/mteb

# Apache Beam wants other versions of some packages: it gets an environment of its own.
test-beam:  ## prepare data, and cache a task, as Apache Beam pipelines (makes .venv-beam)
	test -x .venv-beam/bin/python || $(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip --disable-pip-version-check install --quiet -e '.[test,beam]'
	.venv-beam/bin/python -m pytest tests/beam --durations=10

test-t5x: $(VENV)/installed  ## the T5X adapter; install T5X first, as docs/t5x.md says
	$(BIN)/python -m pytest tests/t5x --durations=10

# Beside the environment and not in it, where jax would look for a TPU whenever it starts. FEW=1: those that are quick.
.aot/libtpu-installed: constraints.txt
	$(PIP) install --quiet --no-deps --upgrade --target .aot -c constraints.txt libtpu
	@touch $@

.aot/cuda-installed: constraints.txt
	$(PIP) install --quiet --no-deps --upgrade --target .aot -c constraints.txt jax-cuda13-plugin jax-cuda13-pjrt
	@touch $@

test-compile: $(VENV)/installed .aot/libtpu-installed $(if $(FEW),,.aot/cuda-installed)  ## compile for TPUs and GPUs that are not here, and look at it (40 minutes; FEW=1: 3)
	COMPILE_FEW=$(FEW) PYTHONPATH=.aot $(BIN)/python -m pytest tests/compile --durations=0

test-buckets: $(VENV)/installed  ## train, encode, search, mine and prepare in gs://, against an emulator (installs it)
	$(PIP) install --quiet -c constraints.txt -e '.[test,buckets]'
	$(BIN)/python -m pytest tests/buckets --durations=5

KILLS ?= 300
SEED ?= 0
PROCESSES ?= 1 2 4
campaign-kills: $(VENV)/installed  ## kill training KILLS times at any moment, on 1, 2 and 4 processes (hours; SEED=0)
	$(BIN)/python tests/campaigns/kills.py --kills $(KILLS) --seed $(SEED) --processes $(PROCESSES)

lint: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed  ## quick benchmarks of the training step, the loss, encoding, the input pipeline, search and data preparation
	for name in training_step loss encoding input_pipeline search prepare; do \
	  echo "== $$name"; TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

wheel-check: $(VENV)/installed  ## build the wheel, install it elsewhere, use it away from the source tree
	$(BIN)/python tests/wheel_check.py

install: $(VENV)/installed  ## make .venv and install gtr_jax into it

# A browser for the search page, where Debian has one and it may be installed; its tests are skipped elsewhere.
CHROMIUM = command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium; } \
  >/dev/null 2>&1 || echo "no Chromium: the tests of the search page will be skipped"

install-peers: $(VENV)/installed-peers  ## also install the libraries that gtr_jax is compared with

clean:  ## remove what the demo and the builds have written
	rm -rf demo build dist *.egg-info

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "gtr_jax needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/installed-peers: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt -e '.[test,peers]'
	@$(CHROMIUM)
	@touch $@
