# The one entry for people and CI. Everything runs in .venv, which `make install` builds from pinned versions.
#
# On a machine without a GPU, a CPU build of torch saves gigabytes; pass your index if pip does not find one by itself:
#   make install PIP_ARGS="--extra-index-url <index of CPU wheels>"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check bench docs format clean

install: $(STAMP)

# torch first and pinned: whatever comes after then keeps that build
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("agentenv needs Python 3.11 or newer; pass PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $(STAMP)

quickstart: install
	$(BIN)/agentenv quickstart $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/make_reference.py --check

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

docs: install
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
