PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 8
BIN := $(VENV)/bin
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types check fmt

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

setup: $(DEV) ## create .venv with everything a developer needs

demo: $(TEST) ## compile a small GPT for two processes, train it on real text, compare with one, draw it
	$(BIN)/python examples/demo.py

test: $(TEST) ## run the tests (PYTEST_ARGS="..." to choose)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(DEV) ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV) ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test ## all that must pass before a change goes in

fmt: $(DEV) ## format the source
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Some systems ship Python without ensurepip; there the system's own pip fills the environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[test]"
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[dev]"
	@touch $@ $(TEST)
