# Commands for users and developers; `make help` lists them.

PYTHON ?= python3.11
VENV ?= .venv

RECIPE ?= dcgan
DATASET ?= digits
# Recipes and data sets may be paths: the last part, without .py, .zip or .npz, stands for them.
name = $(patsubst %.npz,%,$(patsubst %.zip,%,$(patsubst %.py,%,$(notdir $(patsubst %/,%,$(1))))))
RUN_DIR ?= runs/$(call name,$(RECIPE))-$(call name,$(DATASET))
# Additional flags of the command, such as ARGS="--seed=1 --batch_size=128".
ARGS ?=
# LENGTH is the length of training: --kimg=500, --epochs=20 or --steps=1000. If it is not given, the
# recipe's length is used, except for `dcgan` on GPUs: its length is chosen for a CPU and would be
# over too soon. LENGTH must not have a global default: `?=` has no effect on a variable that is
# defined, even if it is empty.
train-gpu: LENGTH ?= $(if $(filter dcgan,$(RECIPE)),$(if $(LENGTH_IN_ARGS),,--kimg=10000))
LENGTH_IN_ARGS = $(filter --kimg=% --epochs=% --steps=%,$(ARGS))
DEV = /dev
NUM ?= 64
# The benchmark to run: the name of a file in benchmarks/, without .py.
BENCHMARK ?= training
# Images are tagged with the version. IMAGE replaces name and tag, such as HOST/gan-trainer:0.2.0.
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' trainer/__init__.py)
DOCKER ?= docker
OVERLAY ?= cpu-smoke
# Number of parallel test processes. Each keeps one core busy, mostly with building graphs. The
# target k8s-submit uses the same name for its number of Pods, but only if it is given.
WORKERS ?= 2

# Python, with the CUDA libraries of the environment (if any) on the search path of the loader.
CUDA_PYTHON = libs=$$(ls -d $(VENV)/lib/python*/site-packages/nvidia/*/lib 2>/dev/null | \
	tr '\n' ':'); LD_LIBRARY_PATH="$$libs$$LD_LIBRARY_PATH" $(VENV)/bin/python

RUN = -m trainer train --recipe=$(RECIPE) --dataset=$(DATASET) --run_dir="$(RUN_DIR)"

# The flag $(2) if the variable $(1) was given on the command line: the defaults in this file are not
# meant for clusters.
given = $(if $(findstring command,$(origin $(1))),--$(2)="$($(1))")
# Where `make dist` writes the wheel and the source archive.
DIST ?= dist
# BASE_IMAGE replaces the base image, best as NAME@sha256:DIGEST. BUILD_FLAGS are further flags of
# the builder.
BASE_IMAGE ?=
BUILD_FLAGS ?=
BUILD = $(DOCKER) build --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help train train-gpu generate evaluate export status doctor tensorboard test test-faults \
	test-parquet \
	coverage benchmark lint dist test-dist image image-cpu requirements k8s-render k8s-submit \
	clean

help: ## list these commands
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | \
		awk -F'\t' '{printf "  make %-14s%s\n", $$1, $$2}'
	@echo
	@echo "Settings are given as NAME=VALUE, for example:"
	@echo "  make train RECIPE=cgan DATASET=mnist LENGTH=--kimg=200 RUN_DIR=runs/first ARGS=\"--seed=1\""

train: $(VENV)/.installed ## train RECIPE on DATASET on the CPU; run it again to resume
	$(VENV)/bin/python $(RUN) --devices=cpu $(LENGTH) $(ARGS)

train-gpu: ## train RECIPE on DATASET on all GPUs; run it again to resume
	@ls $(DEV)/nvidia[0-9]* $(DEV)/dxg 2>/dev/null | grep -q . || { \
		echo "No NVIDIA GPU was found (neither $(DEV)/nvidia0 nor, on WSL 2, $(DEV)/dxg exists)." \
		"Install the driver, start the container with GPU access, or train on the CPU with" \
		"\`make train\`." >&2; exit 64; }
	@$(MAKE) --no-print-directory $(VENV)/.gpu
	$(CUDA_PYTHON) $(RUN) --devices=gpu $(LENGTH) $(ARGS)

generate: $(VENV)/.installed ## generate NUM images with the run in RUN_DIR
	$(CUDA_PYTHON) -m trainer generate --run_dir="$(RUN_DIR)" --num=$(NUM) $(ARGS)

evaluate: $(VENV)/.installed ## measure the image quality of the run in RUN_DIR (FID and other metrics)
	$(CUDA_PYTHON) -m trainer evaluate --run_dir="$(RUN_DIR)" $(ARGS)

export: $(VENV)/.installed ## export the generator of RUN_DIR for use without this package
	$(CUDA_PYTHON) -m trainer export --run_dir="$(RUN_DIR)" $(ARGS)

status: $(VENV)/.installed ## show the progress and health of the run in RUN_DIR
	$(VENV)/bin/python -m trainer status --run_dir="$(RUN_DIR)" $(ARGS)

doctor: $(VENV)/.installed ## show versions, GPUs and memory, and why a GPU cannot be used
	$(CUDA_PYTHON) -m trainer doctor $(ARGS)

tensorboard: $(VENV)/.tensorboard ## start TensorBoard for all runs in runs/
	$(VENV)/bin/tensorboard --logdir=runs $(ARGS)

test: $(VENV)/.test ## run the tests (10 to 25 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-faults: $(VENV)/.test ## run the fault tests on real processes (under 30 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "faults and not marathon" $(ARGS)

test-parquet: $(VENV)/.test $(VENV)/.parquet ## run the tests of Parquet files, which need pyarrow
	$(VENV)/bin/python -m pytest tests/data/test_prepare.py -k parquet $(ARGS)

coverage: $(VENV)/.test ## run the tests and report their coverage of the package
	$(VENV)/bin/python -m pytest -n $(WORKERS) --cov=trainer --cov-report=term $(ARGS)

benchmark: $(VENV)/.installed ## run the benchmark BENCHMARK (see benchmarks/README.md)
	$(VENV)/bin/python -m benchmarks.$(BENCHMARK) $(ARGS)

lint: $(VENV)/.test ## check code style, types and Dockerfiles
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint docker/Dockerfile*

dist: $(VENV)/.dist ## build the wheel and the source archive of this version
	$(VENV)/bin/python -m build --outdir "$(DIST)"

test-dist: $(VENV)/.test $(VENV)/.dist ## build, install and try the wheel and the source archive
	$(VENV)/bin/python -m pytest tests/test_release.py -m dist $(ARGS)

image: ## build the container image for GPUs
	$(BUILD) --file docker/Dockerfile --tag $(or $(IMAGE),gan-trainer:$(VERSION)) .

image-cpu: ## build the container image for CPUs
	$(BUILD) --file docker/Dockerfile.cpu --tag $(or $(IMAGE),gan-trainer-cpu:$(VERSION)) .

requirements: $(VENV)/.requirements ## update the pinned packages of the images, with their hashes
	$(call pin,tensorflow-cpu,docker/requirements-cpu.txt)
	$(call pin,tensorflow[and-cuda],docker/requirements-gpu.txt,nvidia-cudnn-cu12,gpu-metrics)
	$(VENV)/bin/python docker/capabilities.py docker/requirements-gpu.txt

# Pins install_requires of setup.py, with TensorFlow replaced by the variant $(1), and the extra
# `prometheus`, which --metrics_port needs, in the file $(2). $(3) is a package of the extra `gpu`
# whose versions it limits, and $(4) names a further extra.
pin = sed -n -e '/install_requires/,/\]/s/.*"\([^"]*\)",$$/\1/p' \
	$(foreach extra,prometheus $(4),-e 's/.*"$(extra)": \["\([^"]*\)"\],$$/\1/p') \
	$(if $(3),-e 's/^ *"\($(3)[^"]*\)".*/\1/p') setup.py | \
	sed 's/^tensorflow/$(1)/' | $(VENV)/bin/pip-compile --quiet --upgrade --generate-hashes \
	--allow-unsafe --strip-extras --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --output-file $(2) -

k8s-render: ## print the Kubernetes manifests of OVERLAY
	@kubectl kustomize k8s/overlays/$(OVERLAY)

k8s-submit: ## print a new Job that trains with OVERLAY; APPLY=1 applies it
	@$(PYTHON) k8s/submit.py --overlay="$(OVERLAY)" $(foreach c,$(COMPONENTS),--component="$(c)") \
		$(call given,RECIPE,recipe) $(call given,DATASET,dataset) $(call given,LENGTH,length) \
		$(call given,NAME,name) $(call given,GPUS,gpus) $(call given,GPU_TYPE,gpu_type) \
		$(call given,GPU_RESOURCE,gpu_resource) $(call given,CPUS,cpus) \
		$(call given,MEMORY,memory) $(call given,WORKERS,workers) \
		$(call given,IMAGE,image) $(call given,BUCKET,bucket) $(call given,SCRATCH,scratch) \
		$(call given,SERVICE_ACCOUNT,service_account) \
		$(call given,BILLING_PROJECT,billing_project) \
		$(call given,CONTEXT,context) $(call given,NAMESPACE,namespace) \
		$(foreach flag,$(ARGS),--flag=$(flag)) $(if $(JOBSET),--jobset="$(JOBSET)") \
		$(if $(APPLY),--apply="$(APPLY)")

clean: ## remove the environment, built archives and caches of tools; runs are kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find trainer tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The environment is updated when setup.py changes. The targets below add extras to it.
$(VENV)/.installed: setup.py
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found. Install Python 3.11 or choose another with PYTHON=python3." >&2; \
		exit 64; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.gpu $(VENV)/.tensorboard $(VENV)/.parquet $(VENV)/.test $(VENV)/.dist $(VENV)/.requirements: $(VENV)/.%: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
