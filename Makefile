# Everything lives in .venv; nothing else on the machine is touched. `make` lists the targets.

PYTHON ?= python3
ARGS ?=
SECONDS ?= 60

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check bench bench-storage bench-scale bench-data bench-predict bench-quality bench-dashboard pictures chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12  the interpreter to build .venv with: 3.11, 3.12 or 3.13"
	@echo "  ARGS='...'         more arguments for demo, test, the benchmarks and chaos, such as ARGS='-k space -n 0'"
	@echo "  SECONDS=600        how long chaos lasts; 60 by default"

demo: .venv/.installed ## install, then tune a digit classifier: studies/digits.toml
	$(BIN)/tuner run studies/digits.toml $(ARGS)
	@echo "tuner is in $(BIN); to have it on the path:  . $(BIN)/activate"

test: .venv/.installed-test ## install with the test extra, then run the test suite
	$(BIN)/python -m pytest -n auto $(ARGS)

check: .venv/.installed-dev ## install with the dev extra, then lint, check formats, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/.installed-test ## measure the fused trainer against plain PyTorch
	$(BIN)/python -m tests.benchmarks.lanes $(ARGS)

bench-storage: .venv/.installed-test ## measure what the storage costs a trial against plain Optuna, and 64 workers on one server
	$(BIN)/python -m tests.benchmarks.storage $(ARGS)

bench-scale: .venv/.installed-test ## simulate how many workers one PostgreSQL takes, from what its calls are measured to cost
	$(BIN)/python -m tests.benchmarks.scale $(ARGS)

bench-predict: .venv/.installed-test ## measure predicting a large file against a bare forward pass, reading and writing
	$(BIN)/python -m tests.benchmarks.predictions $(ARGS)

bench-dashboard: .venv/.installed-test ## measure the dashboard in a browser with 1,000 and 20,000 trials
	$(BIN)/python -m tests.benchmarks.dashboard $(ARGS)

bench-data: .venv/.installed-test ## measure reading a large table against polars and scikit-learn alone
	$(BIN)/python -m tests.benchmarks.tables $(ARGS)

bench-quality: .venv/.installed-test ## measure test errors on the tables in DATA=folder against usual searches
	$(BIN)/python -m tests.benchmarks.quality $(DATA) $(ARGS)

chaos: .venv/.installed-test ## kill workers, crash databases and cut connections at random, and check every promise
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) $(ARGS)

pictures: .venv/.installed-test ## draw the README's pictures anew, from a real run: docs/live.svg and docs/report.png
	$(BIN)/python -m tests.pictures

clean: ## remove .venv and all caches; studies and their databases stay
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find tuner tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: .venv/.made $(INPUTS)
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/.installed-test: .venv/.made $(INPUTS)
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

.venv/.installed-dev: .venv/.made $(INPUTS)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

.venv/.made:
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) not found; install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Tuner needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" % v)'
	@"$(PYTHON)" -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@
