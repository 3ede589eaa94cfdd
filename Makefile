# Each target sets up what it needs: a virtual environment in .venv, and Debian packages where it may install them
# (as root, or by sudo without a password; otherwise it says in one line what to install).

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: help run test test-slow test-ft test-ft-slow lint bench docs python-ft wheel clean

VENV := .venv
VENV_FT := .venv-ft
PY := $(VENV)/bin/python
PY_FT := $(VENV_FT)/bin/python

# what the tests compare with and build guests by: THING=PACKAGE, see tools/need.sh
TEST_TOOLS := \
	dtc=device-tree-compiler \
	qemu-system-riscv64=qemu-system-riscv|qemu-system-misc \
	qemu-riscv64-static=qemu-user-static \
	qemu-img=qemu-utils \
	riscv64-linux-gnu-gcc=gcc-riscv64-linux-gnu \
	/usr/riscv64-linux-gnu/lib/libc.a=libc6-dev-riscv64-cross \
	riscv64-unknown-elf-gcc=gcc-riscv64-unknown-elf \
	/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_jump.elf=opensbi

help:
	@echo 'make run        boot Debian in the terminal (ARGS: more options of vmm-run)'
	@echo 'make test       the test suite (ARGS: more options of pytest)'
	@echo 'make test-slow  slow and stress tests'
	@echo 'make test-ft    the test suite on a free-threaded Python; test-ft-slow: slow and stress tests there'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      all benchmarks; results in build/bench (ARGS: more options of benchmarks.all, such as --quick)'
	@echo 'make docs       generate the generated pages of docs/'
	@echo 'make python-ft  find or make a free-threaded Python, and $(VENV_FT) on it'
	@echo 'make wheel      build dist/*.whl'

run: $(VENV)/.run
	@$(VENV)/bin/vmm-run debian $(ARGS)

test: $(VENV)/.test test-tools
	$(PY) -m pytest $(ARGS)

test-slow: $(VENV)/.test test-tools
	$(PY) -m pytest -m 'slow or stress' $(ARGS)

test-ft: $(VENV_FT)/.test test-tools
	$(PY_FT) -m pytest $(ARGS)

test-ft-slow: $(VENV_FT)/.test test-tools
	$(PY_FT) -m pytest -m 'slow or stress' $(ARGS)

lint: $(VENV)/.test $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.bench test-tools
	$(PY) -m benchmarks.all --into build/bench $(ARGS)

docs: $(VENV)/.run
	@set -e; for page in $(notdir $(basename $(wildcard tools/docs_*.py))); do $(PY) -m tools.$$page; done
	@$(PY) -m benchmarks.page

python-ft: $(VENV_FT)/.test
	@$(PY_FT) -VV

wheel: $(VENV)/.test
	$(PY) -m pip --quiet wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(VENV_FT) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.PHONY: test-tools
test-tools:
	@tools/need.sh $(foreach tool,$(TEST_TOOLS),'$(tool)')

$(VENV)/.run: pyproject.toml
	@tools/venv.sh $(VENV)
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: pyproject.toml
	@tools/venv.sh $(VENV) $*
	@touch $@

# the tool itself needs a Python of its own to run on, which may be the one that .venv is made of
$(VENV_FT)/.test: pyproject.toml $(VENV)/.run
	@$(PY) -m tools.python_ft --venv $(VENV_FT) >/dev/null
	@touch $@
