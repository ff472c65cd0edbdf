# `make demo` and `make test` need only Python 3.11 to 3.13 with venv, and a C compiler; they set everything else up.
# Variables: PYTHON (the interpreter), VENV (where the environment is), PYTEST_ADDOPTS.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.outrider-installed
SOURCES := bench engine tests setup.py

.PHONY: demo test check build clean

demo: $(STAMP)
	@$(BIN)/python -m engine.cli.main demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/python -m ruff format --check $(SOURCES)
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m mypy
	PATH="$$(cd $(BIN) && pwd):$$PATH" cython-lint _speedups
	$(BIN)/lint-imports

build: $(STAMP)
	$(BIN)/python -m build

$(STAMP): .ci/setup pyproject.toml setup.py $(wildcard _speedups/*.pyx _speedups/*.pxd)
	@PYTHON="$(PYTHON)" .ci/setup "$(VENV)"
	@touch "$@"

clean:
	rm -rf build dist "$(VENV)" outrider.egg-info
	find engine -name '*.so' -delete
