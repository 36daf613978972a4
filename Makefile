# `make help` lists the targets. Targets that need .venv build it first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench_ready
CPUS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(shell [ $(CPUS) -gt 4 ] && echo 4 || echo $(CPUS))

.DEFAULT_GOAL := help
.PHONY: help install train test-fast test test-full test-cluster bench lint format types clean clean-logs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## create .venv with pinned versions of all packages

$(READY): pyproject.toml constraints.txt tests/peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON must be Python 3.11 or newer, got $$($(PYTHON) --version 2>&1)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/peers --requirement tests/peers.txt
	@touch $@

train: $(READY) ## train the quick start on images of clothes (minutes on two CPU cores)
	$(BIN)/python src/train.py experiment=quickstart

# worksteal: each worker runs neighboring tests, which share trained runs. Without bytecode, each worker would compile
# all tests at each start.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(READY) ## run the tests that start no processes (a minute or two)
	$(PYTEST) -m 'not slow and not full and not cluster'

test: $(READY) ## run the test suite (minutes, no network)
	$(PYTEST)

test-full: $(READY) ## run the suite and the tests that take minutes each, including training of the quick start
	$(PYTEST)
	$(BIN)/python -m pytest -m full -n 0 --timeout 3600

test-cluster: $(READY) ## test the commands on a real Slurm on this machine; installs Slurm if it can (as root)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -n 0 -rs tests/cluster

bench: $(BENCH_READY) ## compare with other libraries and write docs/benchmarks.md (half an hour); ARGS='--only loading'
	PYTHONPATH=$(VENV)/peers:$(VENV)/bench_peers $(BIN)/python benchmarks/run.py $(ARGS)

$(BENCH_READY): $(READY) benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/bench_peers --requirement benchmarks/peers.txt
	@touch $@

lint: $(READY) ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## check types with mypy
	$(BIN)/mypy

clean: ## remove .venv and all caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-logs: ## remove all runs under logs/
	rm -rf logs/train logs/train_classifier logs/prepare logs/evaluate logs/sample logs/edit logs/images logs/compare logs/export logs/show_schedule logs/reconstruct_ema logs/import_weights logs/verify logs/inspect_data
