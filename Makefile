# Everything runs in .venv, which requirements.txt pins. On a new machine `make demo` is enough.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test check bench clean

demo: .venv/ready
	$(BIN)/python examples/ddp/demo.py

test: check
	$(BIN)/pytest

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/bench-ready
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache dist

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) $$(grep '^torch==' requirements.txt)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@
