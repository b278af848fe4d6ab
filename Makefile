# Each target works from nothing: the first one that needs an environment makes it and installs everything into it.
PYTHON ?= python3
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
VENV ?= .venv
LOWEST ?= .venv-lowest
OUT ?= runs/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-lowest test-pythons check miniature

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED)  ## install condistill and its tools, pinned, into .venv

demo: $(INSTALLED)  ## show the whole thing on the embedded miniature: runs/demo/report.html
	$(BIN)/condistill demo --out $(OUT)

test: check  ## the checks, then every test that needs no GPU
	$(BIN)/pytest -m "not gpu"

test-fast: $(INSTALLED)  ## the fast tests alone
	$(BIN)/pytest

test-lowest: $(LOWEST)/.installed  ## the fast tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/pytest

test-pythons:  ## the fast tests with every Python of PYTHONS that this machine has
	@for python in $(PYTHONS); do \
	  version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
	    || { echo "$$python: not on this machine, skipped"; continue; }; \
	  $(MAKE) --no-print-directory test-fast PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

miniature: $(INSTALLED)  ## train the embedded miniature again, from scratch; hours on a CPU
	$(BIN)/python tools/train_miniature.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,track,studio,export]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps torch-fidelity  # its torchvision has no build for the pinned torch
	$(BIN)/python -m pip install -c constraints.txt --no-deps --target $(VENV)/optional peft torchao  # diffusers imports them
	@touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -c constraints-lowest.txt -e ".[dev,track]"
	$(LOWEST)/bin/python -m pip install --no-deps torch-fidelity==0.4.0
	@touch $@
