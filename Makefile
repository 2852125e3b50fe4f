# Thin on purpose: every line that runs is explained in README.md.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

demo: $(VENV)/run.stamp
	$(BIN)/clbench run --stream math-code-if --strategy lora-null

test: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses auto --dist loadfile

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/tables.py
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamps hold for a lock and a pyproject.toml that did not change since.
$(VENV)/run.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/pip install --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(BIN)/pip install --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@ $(VENV)/run.stamp

# For maintainers: resolve pyproject.toml anew. The third = keeps pip from taking a local build.
lock: UV := --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
lock:
	uv pip compile pyproject.toml $(UV) -o requirements.lock
	uv pip compile pyproject.toml $(UV) --extra dev --extra docs -o requirements-dev.lock
	sed -i 's/^torch==\([0-9]\)/torch===\1/' requirements.lock requirements-dev.lock

.PHONY: demo test docs lock
