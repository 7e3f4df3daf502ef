# The commands of this project; `make help` lists them.

PYTHON ?= python3.11
VENV ?= .venv

RECIPE ?= dcgan
DATASET ?= digits
RUN_DIR ?= runs/$(RECIPE)-$(DATASET)
# Further flags of the trainer, such as ARGS="--kimg=500 --seed=1".
ARGS ?=
# How long to train, as --kimg=500, --epochs=20 or --steps=1000; else the recipe's length.
# That of `dcgan` suits a CPU; a GPU has the time for more.
LENGTH ?=
train-gpu: LENGTH ?= $(if $(filter dcgan,$(RECIPE)),--kimg=10000)
NUM ?= 64
# Processes that share the tests: building graphs keeps one core busy each.
WORKERS ?= 2

# Python with the CUDA libraries of the environment, if it has any, where the loader finds them.
CUDA_PYTHON = libs=$$(ls -d $(VENV)/lib/python*/site-packages/nvidia/*/lib 2>/dev/null | \
	tr '\n' ':'); LD_LIBRARY_PATH="$$libs$$LD_LIBRARY_PATH" $(VENV)/bin/python

RUN = -m trainer train --recipe=$(RECIPE) --dataset=$(DATASET) --run_dir="$(RUN_DIR)"

.DEFAULT_GOAL := help
.PHONY: help train train-gpu generate evaluate export doctor tensorboard test test-faults lint clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | \
		awk -F'\t' '{printf "  make %-14s%s\n", $$1, $$2}'
	@echo
	@echo "  settings: RECIPE=dcgan DATASET=digits LENGTH=--kimg=200 RUN_DIR=runs/NAME ARGS=\"--flags\""

train: $(VENV)/.installed ## train RECIPE on DATASET on the CPU; again to go on
	$(VENV)/bin/python $(RUN) --devices=cpu $(LENGTH) $(ARGS)

train-gpu: ## train RECIPE on DATASET on all GPUs; again to go on
	@ls /dev/nvidia[0-9]* >/dev/null 2>&1 || { \
		echo "No NVIDIA device here (/dev/nvidia0 is missing): install the driver, start the" \
		"container with its GPUs, or run \`make train\` for the CPU." >&2; exit 64; }
	@$(MAKE) --no-print-directory $(VENV)/.gpu
	$(CUDA_PYTHON) $(RUN) --devices=gpu $(LENGTH) $(ARGS)

generate: $(VENV)/.installed ## draw NUM images from RUN_DIR
	$(VENV)/bin/python -m trainer generate --run_dir="$(RUN_DIR)" --num=$(NUM) $(ARGS)

evaluate: $(VENV)/.installed ## measure how good the pictures of RUN_DIR are
	$(VENV)/bin/python -m trainer evaluate --run_dir="$(RUN_DIR)" $(ARGS)

export: $(VENV)/.installed ## write the generator of RUN_DIR for use without this package
	$(VENV)/bin/python -m trainer export --run_dir="$(RUN_DIR)" $(ARGS)

doctor: $(VENV)/.installed ## show versions, GPUs, memory; why a GPU is not used
	$(CUDA_PYTHON) -m trainer doctor $(ARGS)

tensorboard: $(VENV)/.tensorboard ## show all runs in TensorBoard
	$(VENV)/bin/tensorboard --logdir=runs $(ARGS)

test: $(VENV)/.test ## run the tests (under 10 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-faults: $(VENV)/.test ## kill, starve and crowd real runs (under 30 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "faults and not marathon" $(ARGS)

lint: $(VENV)/.test ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove what make installed and what tools left; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find trainer tests -name __pycache__ -prune -exec rm -rf {} +

# An environment is made anew when setup.py changes; extras are added to it.
$(VENV)/.installed: setup.py
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not here: install Python 3.11 or name another as PYTHON=python3" >&2; \
		exit 64; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.gpu $(VENV)/.tensorboard $(VENV)/.test: $(VENV)/.%: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
