.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/stamp  ## make the virtual environment .venv (once; again when the pins change)

.venv/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The paper trains 50 epochs; 20 keep the demonstration short.
EPOCHS ?= 20

ablation-table: setup  ## the main job: extract if needed, run Table 3, write reports/ablation.* and index.html
	$(BIN)/tgdfer extract
	$(BIN)/tgdfer ablate table3 --set optimiser.epochs=$(EPOCHS)
	$(BIN)/tgdfer report table3 --set optimiser.epochs=$(EPOCHS)

# 280 of the 700 videos, so that it takes a few minutes on 2 cores.
demo: setup  ## train a small bundle, data/demo.tgdfer, and predict three new faces with it
	$(BIN)/tgdfer extract --limit 280 --store data/demo.zarr
	$(BIN)/tgdfer train --store data/demo.zarr --config tuned --fold 1 --runs data/demo-runs
	$(BIN)/tgdfer runs prune --runs data/demo-runs --other-code --yes
	rm -f data/demo.tgdfer data/demo.md
	$(BIN)/tgdfer export data/demo-runs/* data/demo.tgdfer --with-encoder
	$(BIN)/tgdfer demo

# One worker per core; one that is done takes over tests from another.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

test: setup  ## run every test that needs no GPU
	$(PYTEST)

test-fast: setup  ## a minute of tests: none that is slow or starts a process
	$(PYTEST) --fast

test-gpu: setup  ## run the GPU tests; TGDFER_REQUIRE_GPU=1 makes a missing GPU a failure
	$(BIN)/python -m pytest -m gpu

check: setup  ## formatting, lint, types and security
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive tgdfer.py cache pipeline cli
	$(BIN)/python -m pytest tests/test_gate.py

bench: setup  ## measure this machine (half an hour), write benchmarks/*.json and docs/performance.md
	$(BIN)/python -m benchmarks

mini: setup  ## train the bundled mini encoder again (about ten minutes on 2 cores)
	$(BIN)/python -m pipeline.demo.train_mini

clean:  ## remove what the commands made here: environment, data, runs, reports
	rm -rf .venv data runs reports .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup ablation-table demo test test-fast test-gpu check bench mini clean
