# VelvetMed's two commands are `make demo` and `make test`; everything they install lives in .venv.
# TORCH=...        another build or version of torch (default: the CPU-tested release below)
# TORCH_INDEX=...  a package index to take torch from, for machines whose default index serves the CUDA build
# PYTHON=...       the interpreter to make .venv from (3.11 or newer)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= screenshots
# make demo-model: the cohort, the run that can be taken up again, the finished bundle; PROXY=1 for a quarter of an hour.
COHORT ?= demo-model/cohort
RUN ?= demo-model/run
BUNDLE ?= demo-model/bundle
CASES ?= 2600
PROXY ?=
# make test: processes side by side; 0 for one, as a debugger wants it.
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := PYTHONWARNINGS=ignore $(PY) -m pip --disable-pip-version-check --no-input -q
# Setup runs again only when the project file or the wanted torch changes.
KEY := $(shell { cat pyproject.toml; echo '$(TORCH) $(TORCH_INDEX)'; } | cksum | tr ' ' '-')
RUNTIME := $(VENV)/.stamp-runtime-$(KEY)
DEV := $(VENV)/.stamp-dev-$(KEY)
ORACLES := $(VENV)/.stamp-oracles-$(KEY)
NIIVUE := $(VENV)/share/velvetmed/niivue.umd.js

.PHONY: help setup setup-dev oracles niivue system-packages demo demo-model test test-all lint bench screenshots cmake-lists catalogue clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME): | $(PY)
	@echo "Installing $(TORCH) ..."
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@echo "Installing VelvetMed with what it needs to run ..."
	@$(PIP) install -e ".[review]"
	@rm -f $(VENV)/.stamp-runtime-*
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing what the tests need ..."
	@$(PIP) install -e ".[review,export,train,llm,dev]"
	@rm -f $(VENV)/.stamp-dev-*
	@touch $@

# Public packages to compare with, which want other packages by the dozen: only for the long tests, and never a reason to change torch.
# Without them (no network, no wheel for this Python) the tests that need them are skipped with the reason.
$(ORACLES): $(DEV)
	@echo "Installing public packages to compare with ..."
	@$(PY) -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > $(VENV)/torch-as-it-is.txt
	@$(PIP) install -c $(VENV)/torch-as-it-is.txt -e ".[colipri]" && { rm -f $(VENV)/.stamp-oracles-*; touch $@; } \
		|| echo "The package colipri could not be installed: its parity tests will be skipped."
	@$(PIP) install -e ".[search-oracles]" || echo "PostgreSQL and FAISS could not be installed: their tests and comparisons will be skipped."

$(NIIVUE): VelvetMedLib/exports/niivue.py | $(PY)
	@$(PY) -m VelvetMedLib.exports.niivue || echo "Without the viewer the review pages show still pictures."

niivue: $(NIIVUE) ## fetch the viewer script of the review pages (pinned, checked)

setup: $(RUNTIME) niivue ## .venv with the runtime and the review pages

setup-dev: $(DEV) niivue ## .venv with everything that developing and testing need

system-packages:
	@bash scripts/system_packages.sh

demo: setup ## sample scan in, reviewed case out; prints the page to open
	@mkdir -p demo
	@$(VENV)/bin/velvetmed sample
	@rm -rf demo/case demo/site
	@CT=$$($(VENV)/bin/velvetmed sample --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["ct"])') && \
		$(VENV)/bin/velvetmed analyze "$$CT" --out demo/case
	@$(VENV)/bin/velvetmed review demo/case --out demo/site
	@echo
	@echo "Research use only. Not for clinical use."
	@echo "Open this page in a browser: $(CURDIR)/demo/site/index.html"

demo-model: setup-dev ## train the model that the demo uses, on a synthetic cohort; goes on where it was stopped
	@test -f "$(COHORT)/cohort.json" || $(VENV)/bin/velvetmed cohort make --cases $(CASES) --seed 1 --out "$(COHORT)"
	@$(PY) training/demo_model.py --cohort "$(COHORT)" --run "$(RUN)" --out "$(BUNDLE)" $(if $(PROXY),--proxy)
	@echo "Research use only. The model card: $(BUNDLE)/MODEL_CARD.md"

test: setup-dev system-packages ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

oracles: $(ORACLES) ## public packages that long tests and benchmarks compare with

test-all: setup-dev oracles system-packages ## all tests, the long ones too
	@$(PY) -m pytest $(PYTEST_ARGS)

lint: setup-dev ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: setup-dev oracles ## side-by-side measurements
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script"; done

screenshots: setup-dev system-packages ## pictures of the Slicer module into OUT=folder
	@QT_QPA_PLATFORM=offscreen $(PY) Testing/screenshots.py --out "$(OUT)"

cmake-lists: ## rewrite the file lists that the extension's CMake reads
	@$(PYTHON) scripts/cmake_lists.py

catalogue: ## write VelvetMed.json for the extensions index: make catalogue REPOSITORY_URL=https://...
	@test -n "$(REPOSITORY_URL)" || { echo "Give REPOSITORY_URL=https://... (the public address of the repository)"; exit 1; }
	@sed 's|@VelvetMed_REPOSITORY_URL@|$(REPOSITORY_URL)|' VelvetMed.json.in > VelvetMed.json

clean: ## remove .venv and everything that was made
	rm -rf $(VENV) demo demo-model build dist screenshots *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
