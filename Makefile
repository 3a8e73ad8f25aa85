# SPDX-License-Identifier: MIT
# Two commands matter: `make figures` draws the study, `make test` proves it. `make` lists them all.
# A fresh Debian or Ubuntu with Python 3.11 or later, GNU make and g++ is all that is needed.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON   ?= python3
EXTRAS   ?=
JOBS     ?= 2
NOTEBOOK ?=
MACHINE  ?=
SUITE    ?=
TOOL     ?=

VENV := .venv
ifeq ($(CONDA_DEFAULT_ENV),convstudy)  # environment.yml has set everything up
BIN   := $(CONDA_PREFIX)/bin
READY :=
else
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
endif
STUDY := $(BIN)/python -m convstudy

# Notebooks are tested as they draw, and what they have drawn with them.
PYTEST  := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
DRAWN   := $(CURDIR)/build/drawn
LONGEST := $(wildcard notebooks/0[6-9]-*.ipynb)

# Whatever else is set on the command line (`make figures chunks=8`) is a parameter of the
# notebooks, or an option of the suites: passed on one by one, quoted for the shell.
OWN     := PYTHON EXTRAS JOBS NOTEBOOK MACHINE SUITE TOOL \
	VENV BIN READY STUDY PYTEST DRAWN LONGEST
quote    = '$(subst ','\'',$(1))'
one      = $(if $(filter command,$(origin $(1))),$(call quote,$(1)=$(value $(1))))
GIVEN    = $(foreach name,$(sort $(filter-out $(OWN),$(.VARIABLES))),$(call one,$(name)))
SELECTED = $(if $(value NOTEBOOK),--notebook $(call quote,$(value NOTEBOOK)))
FROM     = $(if $(value MACHINE),--machine $(call quote,$(value MACHINE)))

.PHONY: help setup figures test test-gpu sanitize lab train measure doctor data-check notebooks \
	readme lock lint format clean

help:  ## list what there is to do
	@echo "A study of tiled and data-parallel GPU convolutions. make ..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "For example:"
	@echo "  make figures NOTEBOOK=04 MACHINE=local chunks=8   one notebook, this machine, a parameter"
	@echo "  make measure SUITE=functions,memory               two suites only"
	@echo "  make train steps=500 width=8                      a narrower network, fewer steps"
	@echo "  make setup PYTHON=python3.12 EXTRAS=torch         another Python; PyTorch to compare with"

setup: $(READY)  ## make the environment (.venv) from requirements.lock; EXTRAS=torch adds PyTorch
	@$(if $(EXTRAS),$(BIN)/python -m pip install --quiet --constraint requirements.lock \
		--editable $(call quote,.[$(EXTRAS)]))
	@echo "The environment is ready: $(BIN)"

figures: $(READY)  ## measure what is missing here, draw figures/ from the records and figures/local/
	@$(STUDY) figures $(SELECTED) $(FROM) $(GIVEN)

test: $(READY) lint  ## all that CI does: style, layering, tests, notebooks; the GPU's tests need test-gpu
	@rm -rf $(call quote,$(DRAWN))
	@passed=yes; \
	CONVSTUDY_FIGURES=$(call quote,$(DRAWN)) $(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout 300 \
		$(LONGEST) $(filter-out $(LONGEST),$(wildcard notebooks/*.ipynb)) || passed=; \
	CONVSTUDY_DRAWN=$(call quote,$(DRAWN)) $(PYTEST) lib/tests || passed=; \
	test "$$passed"

test-gpu: $(READY)  ## the tests that need a GPU, on a machine that has one
	@$(BIN)/python -m pytest -m gpu lib/tests

sanitize: $(READY)  ## every kernel under compute-sanitizer, on a machine with a GPU; TOOL= names some tools
	@$(STUDY) sanitize $(if $(value TOOL),$(call quote,$(value TOOL)))

lab: $(READY)  ## open the study in JupyterLab
	@$(BIN)/jupyter lab notebooks/00-*.ipynb

train: $(READY)  ## train a U-Net on composites of photographs, or go on where that was stopped
	@$(STUDY) train $(GIVEN)

measure: $(READY)  ## add a record of this machine; SUITE= names some, MACHINE= a folder to keep them in
	@$(STUDY) measure $(FROM) $(if $(value SUITE),$(call quote,$(value SUITE))) $(GIVEN)

# The doctor comes before the environment is there, too: any Python will do.
doctor:  ## say what this machine has, what is measured live, what comes from records, how to get more
	@if [ -x $(BIN)/convstudy ]; then $(STUDY) doctor; \
	else PYTHONPATH=lib $(PYTHON) -m convstudy doctor; fi

data-check: $(READY)  ## check the image sets, and say what is missing
	@$(STUDY) data-check

notebooks: $(READY)  ## execute the committed notebooks again, in place, on the committed records
	@$(STUDY) notebooks $(SELECTED)

readme: $(READY)  ## write the generated parts of README.md again
	@$(STUDY) readme

lock:  ## resolve requirements.lock again, with uv
	@command -v uv >/dev/null || { echo "make lock needs uv: python3 -m pip install uv"; exit 1; }
	uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra cuda --extra mpi \
		--extra test --no-header --no-annotate --no-emit-index-url \
		--output-file requirements.lock pyproject.toml

lint: $(READY)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/lint-imports --no-logo --config pyproject.toml

format: $(READY)  ## put the code into the project's style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## remove build/, which is all made again; records and figures stay
	rm -rf build

# A package index is the user's own setting: the lock holds names and versions alone.
$(VENV)/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is missing: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The study needs Python 3.11 or later and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
		"name another: make setup PYTHON=python3.12"; exit 1; }
	@command -v g++ >/dev/null || { \
		echo "g++ is missing (it builds the CPU emulator): apt install g++"; exit 1; }
	@if [ -x $(BIN)/python ]; then :; \
	elif $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --seed --python $(PYTHON) $(VENV); \
	elif command -v virtualenv >/dev/null; then virtualenv --quiet --python $(PYTHON) $(VENV); \
	else echo "$(PYTHON) cannot make environments: apt install python3-venv"; exit 1; fi
	@echo "Installing what requirements.lock names into $(VENV): at first some 900 MB ..."
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
