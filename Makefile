# demo: both stages on the embedded digits and a report. test, lint: what .ci/run runs. test-all: the slow tests too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint

demo: $(VENV)/.installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ''

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
