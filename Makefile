# make train          creates .venv, installs paxlike, and trains a small model on the Python sources
# make test           lint, types and all tests; those that need optional libraries are skipped
# make test-fast      the quick unit tests
# make test-optional  the tests that need optional libraries, in .venv-optional
# make bench          CPU benchmarks against other libraries; tables, JSON and plots in runs/bench
# make lint           fixes and formats the code, and checks types
# make clean          removes virtual environments and build files; keeps runs

PYTHON ?= python3
VENV ?= .venv
OPTIONAL_VENV ?= .venv-optional
BIN := $(VENV)/bin
# Parallel test processes. A file's tests stay in one process and share what they compile. Without
# reordering, the files with the longest tests come first, so both processes end at the same time.
TEST_PROCESSES ?= 2
PYTEST := -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: train test test-fast test-optional bench lint clean

train: $(VENV)/.installed
	$(BIN)/paxlike train configs/tiny.py

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python $(PYTEST)

test-fast: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) tests/unit -m "not slow"

test-optional: $(OPTIONAL_VENV)/.installed
	$(OPTIONAL_VENV)/bin/python $(PYTEST) -m optional --require-optional

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tools.bench.cpu
	$(BIN)/python -m tools.bench.components

lint: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OPTIONAL_VENV) build *.egg-info .pytest_cache .ruff_cache

%/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"paxlike needs Python 3.11 or newer. Use another one: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $*

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.installed-bench: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

# The extra bench pins the version of torch.
$(OPTIONAL_VENV)/.installed: setup.py | $(OPTIONAL_VENV)/bin/python
	$(OPTIONAL_VENV)/bin/python -m pip install --quiet --editable \
		'.[test,bench,hf,eval,seqio,wandb,xprof,openai]'
	touch $@
