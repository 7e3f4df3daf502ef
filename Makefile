# The commands of this project; `make help` lists them.

PYTHON ?= python3.11
VENV ?= .venv

RECIPE ?= dcgan
DATASET ?= digits
RUN_DIR ?= runs/$(RECIPE)-$(DATASET)
# Further flags of the trainer, such as ARGS="--kimg=500 --seed=1".
ARGS ?=
# How long to train is LENGTH, as --kimg=500, --epochs=20 or --steps=1000; else the recipe's length.
# That of `dcgan` suits a CPU; a GPU has the time for more. LENGTH has no default for all
# targets: `?=` does nothing where there is one, be it empty.
train-gpu: LENGTH ?= $(if $(filter dcgan,$(RECIPE)),$(if $(LENGTH_IN_ARGS),,--kimg=10000))
LENGTH_IN_ARGS = $(filter --kimg=% --epochs=% --steps=%,$(ARGS))
NUM ?= 64
# What to measure: the name of a file in benchmarks/.
BENCHMARK ?= training
# Images: the version is their tag. IMAGE names another, with its registry.
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' trainer/__init__.py)
DOCKER ?= docker
OVERLAY ?= cpu-smoke
# Processes that share the tests: building graphs keeps one core busy each.
WORKERS ?= 2

# Python with the CUDA libraries of the environment, if it has any, where the loader finds them.
CUDA_PYTHON = libs=$$(ls -d $(VENV)/lib/python*/site-packages/nvidia/*/lib 2>/dev/null | \
	tr '\n' ':'); LD_LIBRARY_PATH="$$libs$$LD_LIBRARY_PATH" $(VENV)/bin/python

RUN = -m trainer train --recipe=$(RECIPE) --dataset=$(DATASET) --run_dir="$(RUN_DIR)"

# A setting that was given, as a flag: those of this file are not meant for clusters.
given = $(if $(findstring command,$(origin $(1))),--$(2)="$($(1))")
BUILD = $(DOCKER) build --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
.PHONY: help train train-gpu generate evaluate export status doctor tensorboard test test-faults benchmark lint clean \
	image image-cpu requirements k8s-render k8s-submit

help: ## list the commands
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | \
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
	$(CUDA_PYTHON) -m trainer generate --run_dir="$(RUN_DIR)" --num=$(NUM) $(ARGS)

evaluate: $(VENV)/.installed ## measure how good the pictures of RUN_DIR are
	$(CUDA_PYTHON) -m trainer evaluate --run_dir="$(RUN_DIR)" $(ARGS)

export: $(VENV)/.installed ## write the generator of RUN_DIR for use without this package
	$(CUDA_PYTHON) -m trainer export --run_dir="$(RUN_DIR)" $(ARGS)

status: $(VENV)/.installed ## show where the run in RUN_DIR is
	$(VENV)/bin/python -m trainer status --run_dir="$(RUN_DIR)" $(ARGS)

doctor: $(VENV)/.installed ## show versions, GPUs, memory; why a GPU is not used
	$(CUDA_PYTHON) -m trainer doctor $(ARGS)

tensorboard: $(VENV)/.tensorboard ## show all runs in TensorBoard
	$(VENV)/bin/tensorboard --logdir=runs $(ARGS)

test: $(VENV)/.test ## run the tests (under 10 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-faults: $(VENV)/.test ## kill, starve and crowd real runs (under 30 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "faults and not marathon" $(ARGS)

benchmark: $(VENV)/.installed ## measure BENCHMARK (see benchmarks/README.md)
	$(VENV)/bin/python -m benchmarks.$(BENCHMARK) $(ARGS)

lint: $(VENV)/.test ## check style, types and Dockerfiles
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint docker/Dockerfile*

image: ## build the image for GPUs
	$(BUILD) --file docker/Dockerfile --tag $(or $(IMAGE),gan-trainer:$(VERSION)) .

image-cpu: ## build the image for CPUs
	$(BUILD) --file docker/Dockerfile.cpu --tag $(or $(IMAGE),gan-trainer-cpu:$(VERSION)) .

requirements: $(VENV)/.requirements ## choose the images' packages anew, with their hashes
	$(call pin,tensorflow-cpu,docker/requirements-cpu.txt)
	$(call pin,tensorflow[and-cuda],docker/requirements-gpu.txt)

# The packages of setup.py, with TensorFlow as the image needs it, and what --metrics_port needs.
pin = sed -n -e '/install_requires/,/\]/s/.*"\([^"]*\)",$$/\1/p' \
	-e 's/.*"prometheus": \["\([^"]*\)"\],$$/\1/p' setup.py | \
	sed 's/^tensorflow/$(1)/' | $(VENV)/bin/pip-compile --quiet --upgrade --generate-hashes \
	--allow-unsafe --strip-extras --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --output-file $(2) -

k8s-render: ## print the manifests of OVERLAY
	@kubectl kustomize k8s/overlays/$(OVERLAY)

k8s-submit: ## print a run of OVERLAY as a fresh Job; APPLY=1 applies it
	@$(PYTHON) k8s/submit.py --overlay=$(OVERLAY) $(foreach c,$(COMPONENTS),--component=$(c)) \
		$(call given,RECIPE,recipe) $(call given,DATASET,dataset) $(call given,LENGTH,length) \
		$(call given,NAME,name) $(call given,GPUS,gpus) $(call given,GPU_TYPE,gpu_type) \
		$(call given,WORKERS,workers) \
		$(call given,IMAGE,image) $(call given,BUCKET,bucket) \
		$(call given,SERVICE_ACCOUNT,service_account) \
		$(foreach flag,$(ARGS),--flag=$(flag)) $(if $(filter 1,$(APPLY)),--apply)

clean: ## remove what make installed and what tools left; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find trainer tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# An environment is made anew when setup.py changes; extras are added to it.
$(VENV)/.installed: setup.py
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not here: install Python 3.11 or name another as PYTHON=python3" >&2; \
		exit 64; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.gpu $(VENV)/.tensorboard $(VENV)/.test $(VENV)/.requirements: $(VENV)/.%: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
