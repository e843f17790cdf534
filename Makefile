# Everything runs in .venv, which requirements.txt pins: on a new machine `make demo` is enough.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := pip install --quiet --disable-pip-version-check
# All GPUs where there are some, else two processes on the CPU.
PROCESSES = $$($(BIN)/python -c "import torch; print(torch.cuda.device_count() or 2)")

.PHONY: demo test check stress bench clean

demo: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=$(PROCESSES) examples/ddp/experiment.py \
		--exp-name=demo --continue
	OMP_NUM_THREADS=1 $(BIN)/python examples/kfold/experiment.py --exp-name=demo-kfold

test: check
	$(BIN)/pytest -n logical --maxprocesses=4

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tests benchmarks
	for example in examples/*/; do MYPYPATH=$$example $(BIN)/mypy $$example || exit 1; done

# The promises of checkpoints and of resuming, many times: all parts, or PART="kills power-xfs".
stress: .venv/ready
	$(BIN)/python tests/stress.py $(PART)

bench: .venv-bench/ready
	.venv-bench/bin/python benchmarks/run.py

clean:
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache dist

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) $$(grep '^torch==' requirements.txt)
	$(BIN)/$(INSTALL) -r requirements.txt
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.venv-bench/ready: requirements.txt requirements-bench.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(INSTALL) $$(grep '^torch==' requirements.txt)
	.venv-bench/bin/$(INSTALL) -r requirements.txt -r requirements-bench.txt
	.venv-bench/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@
