# `make demo` and `make test` need only Python 3.11+ with venv and a C compiler; they set everything else up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.outrider-installed
KERNEL_SOURCES := $(wildcard _speedups/*.pyx _speedups/*.pxd) setup.py pyproject.toml

.PHONY: demo test check build clean

demo: $(STAMP)
	$(BIN)/outrider demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check engine tests bench setup.py
	$(BIN)/ruff check engine tests bench setup.py
	$(BIN)/mypy
	$(BIN)/cython-lint _speedups
	$(BIN)/lint-imports

build: $(STAMP)
	$(BIN)/python -m build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(KERNEL_SOURCES)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group test --group check --editable .
	touch $@

clean:
	rm -rf build dist $(VENV) *.egg-info
	find engine -name '*.so' -delete
