PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor

.PHONY: setup demo test test-all test-floor check clean

setup: $(VENV)/.installed

# The modern stack: uv reads [tool.uv] override-dependencies and lifts Composer's stale caps.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

# The floor: what plain pip resolves to, without any override.
$(FLOOR)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --quiet -e '.[dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -m "not gpu"

test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python -m pytest -m "not slow and not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
