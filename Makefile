# `make demo` and `make test` need only python3 (3.11 or newer) and make: they set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TWO_AT_A_TIME := -n 2 --dist worksteal

.PHONY: demo test test-slow check lint types bench docs clean

demo: $(READY)
	$(BIN)/python -m aimemo demo

test: $(READY)
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

test-slow: $(READY)
	$(BIN)/python -m pytest --run-slow $(TWO_AT_A_TIME)

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks

docs: $(READY)
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .aimemo

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("aimemo needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)
