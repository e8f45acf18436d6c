# `make demo` and `make test` need only python3 (3.11 or newer) and make: they set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TWO_AT_A_TIME := -n 2 --dist worksteal

.PHONY: demo test test-slow test-unit test-redis test-integration test-performance test-schema test-browser fuzz test-all mutants faults soak coverage check lint types bench serve docs clean

demo: $(READY)
	$(BIN)/python -m aimemo demo

test: $(READY)
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

test-slow: $(READY)
	$(BIN)/python -m pytest --run-slow $(TWO_AT_A_TIME)

test-unit: $(READY)
	$(BIN)/python -m pytest -m "not redis and not integration and not slow" $(TWO_AT_A_TIME)

test-redis: $(READY)
	$(BIN)/python -m pytest -m redis $(TWO_AT_A_TIME)

test-integration: $(READY)
	$(BIN)/python -m pytest -m integration $(TWO_AT_A_TIME)

test-performance: $(READY)
	$(BIN)/python -m aimemo bench memory:// sqlite:///.aimemo/bench.db --json || test $$? -eq 1

test-schema: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check schemathesis
	$(BIN)/python -m pytest --run-slow tests/test_api_schema.py

test-browser: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check selenium
	$(BIN)/python -m pytest -m browser

fuzz: $(READY)
	AIMEMO_FUZZ_SECONDS=$${AIMEMO_FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/fuzz

test-all: test-slow

mutants: $(READY)
	$(BIN)/python -m tests.mutation

faults: $(READY)
	AIMEMO_SOAK_SECONDS=20 $(BIN)/python -m pytest tests/faults --run-slow --faults-table docs/faults.md $(TWO_AT_A_TIME)

soak: $(READY)
	$(BIN)/python -m pytest tests/faults/test_soak.py --run-slow

coverage: $(READY)
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) --cov --cov-report=term-missing:skip-covered --cov-report=xml

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

bench: $(READY)
	@for peer in $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])"); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $$peer || echo "left out: $$peer"; \
	done
	$(BIN)/python -m benchmarks --json .aimemo/benchmarks.json --write docs/benchmarks.md

serve: $(READY)
	$(BIN)/python -m aimemo serve llm_service:app --app-dir docs/examples

docs: $(READY)
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .aimemo

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("aimemo needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)
