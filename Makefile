# Every target installs what it needs into .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo quick test soak lint bench figure

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 8

demo: $(VENV)/installed ## train resnet20 on real digits by regularized full-batch descent (under 2 minutes on 2 cores)
	$(BIN)/python train_with_gradient_descent.py name=demo data=digits model=resnet20 hyp=gradreg hyp.optim.lr=0.4 \
		hyp.steps=80 hyp.warmup=10 hyp.scheduler=cosine-decay impl.validate_every_nth_step=5 seed=0

quick: $(VENV)/installed ## the tests of the inner loop (under 2 minutes on 2 cores)
	$(PYTEST) -m "not slow and not distributed and not gpu and not soak"

test: $(VENV)/installed ## all tests except the long ones and those for a GPU (under 10 minutes on 2 cores)
	$(PYTEST) -m "not gpu and not soak"

soak: $(VENV)/installed ## the long tests
	$(PYTEST) -m soak

lint: $(VENV)/installed ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/installed ## speed compared with a plain loop, cost of the parts, limits of the machine (ten minutes on 2 cores)
	$(BIN)/python benchmarks/speed.py --json speed.json

figure: $(VENV)/installed ## training loss against gradient evaluations of all optimizers (digits; one minute)
	$(BIN)/python benchmarks/optimizers.py --data digits --evaluations 60 --output optimizers

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$$($(PYTHON) --version) is too old: make PYTHON=python3.10 (or later)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
