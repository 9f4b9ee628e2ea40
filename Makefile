# make train   a virtual environment, the package, and a small model trained on this machine's own Python sources
# make test    what the tests need, and the tests
# make bench   what the benches need, and the benches: speed beside others, tables, JSON and plots in runs/bench
# make clean   removes the virtual environment and build leftovers; runs are left alone

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test bench lint clean

train: $(VENV)/.installed
	$(BIN)/paxlike train configs/tiny.py

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q --durations=10

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tools.bench.cpu
	$(BIN)/python -m tools.bench.around

lint: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paxlike needs Python 3.11 or newer; name one: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.installed-bench: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@
