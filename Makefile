# Two commands do everything: `make demo` and `make test`. Both need only Python >= 3.11 and pip.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint types unit slow drawings clean

demo: .venv/installed
	$(BIN)/python examples/compare_plans.py samples/highway.png --merge none hq --out demo

test: lint types unit

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python benchmarks/tables.py --check

types: .venv/installed-dev
	$(BIN)/mypy

unit: .venv/installed-dev
	$(BIN)/python -m pytest -n 2

# What takes minutes: the notebook, long videos in a browser, larger sizes.
slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

drawings: .venv/installed
	$(BIN)/python docs/make_drawings.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "segformerpp needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (PyTorch is large: the first time takes a few minutes)"
	$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
