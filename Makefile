# The one entry for people and CI. Everything runs in .venv, which `make install` builds from pinned versions.
#
# On a machine without a GPU, a CPU build of torch saves gigabytes; pass your index if pip does not find one by itself:
#   make install PIP_ARGS="--extra-index-url <index of CPU wheels>"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
# which optional dependencies are installed; images take fewer than people who develop
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-engines faults kill-test simulate check bench bench-gpu bench-engines docs docker-check format clean

install: $(STAMP)

# torch first and pinned: whatever comes after then keeps that build
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("agentenv needs Python 3.11 or newer; pass PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[$(EXTRAS)]"
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
	$(BIN)/python docs/make_catalogue.py --check

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

# the trainer alone on fake data; also with an interpreter that has torch and transformers:
# python -m tests.bench.gpu_train
bench-gpu: install
	$(BIN)/python -m tests.bench.gpu_train $(ARGS)

# the real vLLM and SGLang; their environments are made once, outside the checkout, and found again by their pins
test-engines: install
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m tests.real test $(ARGS)

bench-engines: install
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m tests.real bench $(ARGS)

# every fault that a run must survive, the slow proofs included; prints a table last
faults: install
	$(BIN)/python -m tests.faults $(ARGS)

# a training process killed by SIGKILL at 30 random moments, for staleness 0 and 2, must end as if nobody had killed it
kill-test: install
	$(BIN)/python -m tests.kill $(ARGS)

# the real scheduler and training loop in simulated time: wall-clock over staleness, and the plot of docs/async.md
simulate: install
	$(BIN)/python -m agentenv.trainers.simulate $(ARGS)

docs: install
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_catalogue.py --page
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# no Docker engine is needed: the files are linted, and the CPU image's steps run as they stand in an empty folder
docker-check: install
	$(BIN)/python -m pytest -n 0 tests/test_docker.py tests/test_cluster_examples.py
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m tests.image_steps docker/cpu.Dockerfile

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
