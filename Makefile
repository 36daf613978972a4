# `make help` lists what can be made. Every target builds .venv first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench_ready
CPUS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(shell [ $(CPUS) -gt 4 ] && echo 4 || echo $(CPUS))

.DEFAULT_GOAL := help
.PHONY: help install train test test-full test-cluster bench lint format types clean clean-logs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## build .venv with pinned versions of everything

$(READY): pyproject.toml constraints.txt tests/peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON must be Python 3.11 or newer, got $$($(PYTHON) --version 2>&1)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/peers --requirement tests/peers.txt
	@touch $@

train: $(READY) ## train the quick start: clothes out of noise, in minutes on two CPU cores
	$(BIN)/python src/train.py experiment=quickstart

test: $(READY) ## run the suite (minutes, no network)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-full: $(READY) ## run the suite and all that takes longer, the whole quick start among it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
	$(BIN)/python -m pytest -m full -n 0 --timeout 3600

test-cluster: $(READY) ## run the commands on a real Slurm of this one machine, which it installs where it can
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -n 0 -rs tests/cluster

bench: $(BENCH_READY) ## measure beside diffusers and others, half an hour on two cores: docs/benchmarks.md
	PYTHONPATH=$(VENV)/peers:$(VENV)/bench_peers $(BIN)/python benchmarks/run.py $(WORDS)

$(BENCH_READY): $(READY) benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/bench_peers --requirement benchmarks/peers.txt
	@touch $@

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## bring the code into format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## check types
	$(BIN)/mypy

clean: ## remove caches and .venv
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-logs: ## remove all runs
	rm -rf logs/train logs/train_classifier logs/evaluate logs/sample logs/images logs/compare logs/show_schedule logs/reconstruct_ema logs/inspect_data
