# `make sample` and `make test` are all a newcomer needs; both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Quiet about what a newcomer need not care for: newer versions of pip, running as root, a missing cache.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip --quiet

.DEFAULT_GOAL := help
.PHONY: help sample test proofs bench gpu build wheel lint clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

sample: build  ## set up, then sample 64 labelled images into out/, and 64 in two steps into out/few/
	@$(BIN)/fastdiff sample --compare --out out
	@printf '\nthe bundled model of few steps:\n'
	@$(BIN)/fastdiff sample --checkpoint fashion-mnist-few --steps 2 --out out/few

test: build $(VENV)/test-ready  ## set up, then lint, types and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --numprocesses logical --dist loadgroup

proofs: build $(VENV)/test-ready  ## what `make test` takes samples of: each kernel for each architecture, each instruction set on all cases
	$(BIN)/python -m pytest --numprocesses logical --dist loadgroup --proofs

bench: build $(VENV)/test-ready  ## set up, then time ops, networks, sampling and training beside eager PyTorch; draws docs/img
	$(BIN)/python benchmarks/suite.py $(ARGS)

gpu:  ## on a machine with a GPU: build, test and measure; installs nothing (ARGS="--part ops --minutes 9")
	$(PYTHON) benchmarks/gpu.py $(ARGS)

# Excluded are torch's own libraries. OpenMP's runtime is torch's as well: nothing is linked with it (csrc/libraries.py).
wheel: build $(VENV)/test-ready  ## the wheel for this Python, checked by auditwheel, into dist/ (CROSS=aarch64-linux-gnu-g++)
	@rm -rf build/lib* build/wheel
	@FASTDIFF_COMPILE=1 $(if $(CROSS),CXX=$(CROSS)) $(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --exclude libtorch_cpu.so --exclude libc10.so \
		--wheel-dir dist build/wheel/*.whl
	@ls -l dist

lint: build $(VENV)/test-ready  ## format and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(VENV)/ready  ## create .venv, install the pinned dependencies, compile the kernels
	@$(BIN)/python setup.py --quiet build_ext --inplace

clean:  ## remove what was built, but not .venv
	rm -rf build dist out fastdiff/lib fastdiff.egg-info

# --no-build-isolation: an isolated build would fetch what is already here. The stamp comes last, so that an
# installation that failed or was interrupted is taken up again.
$(VENV)/ready: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastdiff needs Python 3.10 or newer; say which with make PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the dependencies into $(VENV) and compiling the kernels: a few minutes, the first time only"
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test-ready: requirements-test.txt $(VENV)/ready
	@echo "installing the tools for tests and benchmarks"
	@$(PIP) install -r requirements-test.txt
	@touch $@
