# Each target works from nothing: the first one that needs it installs everything into .venv.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check miniature

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED)  ## install condistill and its tools, pinned, into .venv

demo: $(INSTALLED)  ## show the whole thing on the embedded miniature: runs/demo/report.html
	$(BIN)/condistill demo --out $(OUT)

test: check  ## the checks, then every test that needs no GPU
	$(BIN)/pytest -m "not gpu"

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

miniature: $(INSTALLED)  ## train the embedded miniature anew, from scratch; hours on a CPU
	$(BIN)/python tools/train_miniature.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,track]"
	@touch $@
