# `make sample` and `make test` are all a newcomer needs; both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help sample test bench build lint clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

sample: build  ## set up, then sample 64 labelled images from the bundled model into out/
	$(BIN)/fastdiff sample --out out

test: build $(VENV)/test-ready  ## set up, then lint, types and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

bench: build $(VENV)/test-ready  ## set up, then time every op and the samplers against eager PyTorch
	$(BIN)/python -m pytest benchmarks --benchmark-group-by=param:case

lint: build $(VENV)/test-ready  ## format and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(VENV)/ready  ## create .venv, install the pinned dependencies, compile the kernels
	@$(BIN)/python setup.py --quiet build_ext --inplace

clean:  ## remove what was built, but not .venv
	rm -rf build out fastdiff/lib fastdiff.egg-info

# --no-build-isolation: an isolated build would fetch what is already here.
$(VENV)/ready: requirements.txt pyproject.toml setup.py
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/test-ready: requirements-test.txt $(VENV)/ready
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@
