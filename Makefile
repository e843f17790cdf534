# Everything runs in .venv, which requirements.txt pins: on a new machine `make demo` is enough.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := pip install --quiet --disable-pip-version-check
# Of `make stress`: how much of the usual, such as 0.1.
BUDGET ?= 1
# One more than there are cores, since some tests wait; four at most.
PARALLEL := -n $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")
# All GPUs where there are some, else two processes on the CPU.
PROCESSES = $$($(BIN)/python -c "import torch; print(torch.cuda.device_count() or 2)")

# The versions of Python and torch that `make matrix` tests: python3.10 and so on are in PATH.
MATRIX ?= 3.10-2.10.0 3.11-2.13.0 3.12-2.11.0 3.13-2.14.1

# Of `make floors`. matplotlib 3.10.0 uses names that pyparsing 3.3 warns about.
TEST_TOOLS := attrs hatchling ipykernel ipywidgets nbclient pandas pyarrow pydantic \
	'pyparsing<3.3' pytest pytest-timeout pytest-xdist sybil torchmetrics websockets

.PHONY: demo test check docs docs-serve pictures stress bench gpu matrix floors ecosystem clean

demo: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=$(PROCESSES) examples/ddp/experiment.py \
		--exp-name=demo --continue
	OMP_NUM_THREADS=1 $(BIN)/python examples/kfold/experiment.py --exp-name=demo-kfold

# Each process imports the test files: their bytecode is kept.
test: check
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest $(PARALLEL)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tests benchmarks
	for example in examples/*/; do MYPYPATH=$$example $(BIN)/mypy $$example || exit 1; done

# The manual, as a site: docs/_site/index.html.
docs: .venv/docs-ready
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -j auto docs docs/_site

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory docs/_site 8000

# The pictures of the manual, from real runs. It needs Chromium, and takes some ten minutes.
pictures: .venv/ready
	$(BIN)/python docs/_pictures.py
	$(BIN)/python docs/_examples.py

# The promises of checkpoints and of resuming, many times: all parts, or PART="kills power-xfs".
stress: .venv/ready
	$(BIN)/python tests/stress.py $(PART) --budget=$(BUDGET)

bench: .venv-bench/ready
	.venv-bench/bin/python benchmarks/run.py

# The tests and benchmarks that need a GPU, with the packages that PYTHON has. Nothing is installed.
gpu:
	PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) benchmarks/gpu.py

# Beside other libraries, which `make test` does without; writes what came out of it into the docs.
ecosystem: .venv-ecosystem/ready
	.venv-ecosystem/bin/pytest -rs tests/ecosystem --page=docs/ecosystem.md

# Every supported version; other wheels of torch than the pinned one bring gigabytes.
matrix: $(MATRIX:%=.venv-%/ready)
	for pair in $(MATRIX); do echo "Python and torch: $$pair"; .venv-$$pair/bin/pytest $(PARALLEL) || exit 1; done

# The oldest release of each package that pyproject.toml allows, and the newest that only tests need.
floors: .venv-floors/ready
	.venv-floors/bin/pytest $(PARALLEL)

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache dist

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) $$(grep '^torch==' requirements.txt)
	$(BIN)/$(INSTALL) -r requirements.txt
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.venv/docs-ready: .venv/ready requirements-docs.txt
	$(BIN)/$(INSTALL) -r requirements-docs.txt
	touch $@

# Some releases of torch need an older setuptools. One call for all: a second one would take another
# torch that fits.
.venv-3%/ready: requirements.txt pyproject.toml
	python3$(firstword $(subst -, ,$*)) -m venv .venv-3$*
	grep -vE '^(torch|setuptools)==' requirements.txt > .venv-3$*/requirements.txt
	.venv-3$*/bin/$(INSTALL) torch==$(lastword $(subst -, ,$*)) -r .venv-3$*/requirements.txt
	.venv-3$*/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.venv-floors/ready: pyproject.toml
	python3.10 -m venv .venv-floors
	.venv-floors/bin/$(INSTALL) uv
	.venv-floors/bin/uv pip install --quiet --python .venv-floors --resolution lowest-direct -e ".[all]"
	.venv-floors/bin/uv pip install --quiet --python .venv-floors $(TEST_TOOLS)
	touch $@

.venv-ecosystem/ready: requirements.txt requirements-ecosystem.txt pyproject.toml
	$(PYTHON) -m venv .venv-ecosystem
	.venv-ecosystem/bin/$(INSTALL) $$(grep '^torch==' requirements.txt)
	.venv-ecosystem/bin/$(INSTALL) --no-deps -r requirements.txt -r requirements-ecosystem.txt
	.venv-ecosystem/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.venv-bench/ready: requirements.txt requirements-bench.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(INSTALL) $$(grep '^torch==' requirements.txt)
	.venv-bench/bin/$(INSTALL) -r requirements.txt -r requirements-bench.txt
	.venv-bench/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@
