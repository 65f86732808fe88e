# `make demo` and `make test` need Python 3.11-3.13 and nothing else; they share one .venv, which either makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TESTS ?= tests

.PHONY: demo demo-full test test-all check pytest clean

demo: $(VENV)/.runtime
	$(BIN)/defectory demo

demo-full: $(VENV)/.runtime
	$(BIN)/defectory demo --full

# pyright keeps one core busy for a minute, so tests begin beside it
test: $(VENV)/.development
	$(MAKE) --no-print-directory --jobs 2 check pytest

# every combination of concept method, condition network and family of bases, and kills of each room, too
test-all: $(VENV)/.development
	$(MAKE) --no-print-directory --jobs 2 check pytest MARKED="matrix or long or not matrix"

check: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

pytest: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(if $(MARKED),-m "$(MARKED)") $(TESTS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV)
