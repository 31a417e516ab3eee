# demo: both stages on the embedded digits and a report.
# test: the quick tests. test-all: these, with their line coverage, and the slow ones.
# lint: ruff, the arrows between packages, the types of the public surface.
# .ci/run runs test-all, lint, docs and test-newest.
# docs: the pages, into site/; a broken link is an error.
# wheel-test: builds the wheel, installs it in an empty folder, and runs its commands there.
# robustness: kills, inputs broken at random, limits of memory and time.
# test-newest: the quick tests with the newest versions that pyproject.toml allows, in an environment of their own.
# lock: makes these the versions that all other targets install, once the tests pass with them.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
LOCK := .ci/constraints.txt
DOCS := .venv-docs
DOCS_LOCK := .ci/docs-constraints.txt
PYTEST := python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all test-gpu robustness lint lint-imports docs wheel-test test-newest lock

demo: $(VENV)/.installed
	$(VENV)/bin/python scripts/quickstart.py

test: $(VENV)/.installed
	$(VENV)/bin/$(PYTEST) $(COVERAGE)

# The lines that the quick tests reach in their own processes, which measuring makes a quarter slower; scripts that they
# start are not counted.
test-all: COVERAGE = --cov --cov-report=
test-all: test
	@$(VENV)/bin/python -m coverage report --format total | sed 's/.*/line coverage: & %/'
	$(VENV)/bin/$(PYTEST) -m 'slow and not robustness and not gpu'

# On the GPU of this machine; all other tests stay on its CPU.
test-gpu: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m gpu

robustness: $(VENV)/.installed
	$(VENV)/bin/$(PYTEST) -m robustness

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(MAKE) --no-print-directory lint-imports
	$(VENV)/bin/mypy

lint-imports: $(VENV)/.installed
	PYTHONPATH=.:scripts $(VENV)/bin/lint-imports --no-cache

# In an environment of its own: the pages are built from the sources' text, and nothing of the project is imported.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

# The commands of the wheel, in an environment of its own and a folder without the checkout.
wheel-test:
	PYTHON=$(PYTHON) bash tests/wheel/run

# Where the newest versions are the locked ones, `make test` has run their tests.
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo '# Written by `make lock` on Linux with Python 3.11, the oldest that is supported.'; \
	$(NEWEST)/bin/python -m pip list --format freeze --exclude-editable --exclude pip | sed 's/+.*//'; \
	} > $(NEWEST)/versions.txt
	@if cmp --silent $(NEWEST)/versions.txt $(LOCK); then \
	echo 'the newest versions are those of $(LOCK): nothing to try'; \
	else diff $(LOCK) $(NEWEST)/versions.txt; $(NEWEST)/bin/$(PYTEST); fi

# With another Python pip takes versions that the oldest may not have.
lock:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "make lock PYTHON=python3.11")'
	$(MAKE) test-newest
	cp $(NEWEST)/versions.txt $(LOCK)

$(VENV)/.installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]' --constraint $(LOCK)
	touch $@

$(DOCS)/.installed: pyproject.toml $(DOCS_LOCK)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/packages.txt
	$(DOCS)/bin/python -m pip install --quiet --requirement $(DOCS)/packages.txt --constraint $(DOCS_LOCK)
	touch $@
