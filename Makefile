# The first call of any target makes .venv; later calls reuse it until pyproject.toml or
# constraints.txt change.  Other interpreters: make test PYTHON=python3.12

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST_ARGS ?= -n auto
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test lint wheel bench notebooks clean

help:
	@echo "make demo   prune a small trained network and prove how good the result is"
	@echo "make test   run the tests"
	@echo "make lint   ruff, formatting and mypy"
	@echo "make wheel  build the wheel and try it in a clean environment"
	@echo "make bench  run the benchmarks"
	@echo "make notebooks  execute the notebooks and keep their outputs"
	@echo "make clean  remove everything that make made"

# torch first and alone: its version decides which of its many dependencies are fetched
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt "torch==2.13.0"
	$(PIP) install --quiet -c constraints.txt -e ".[examples,dev]"
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/chita-opt demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# mypy sees the package as it is published: formulations/ as chita_opt.formulations
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .typed build
	$(PIP) install --quiet --no-deps --target .typed .
	rm -rf build
	$(BIN)/mypy .typed/chita_opt

# a clean environment that borrows the dependencies of .venv, but not its editable chita_opt:
# a path read from a .pth file does not have its own .pth files read
wheel: $(STAMP)
	rm -rf dist .wheel
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m venv .wheel
	.wheel/bin/python -m pip --disable-pip-version-check install --quiet --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.wheel/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	cd / && "$(CURDIR)/.wheel/bin/python" -I "$(CURDIR)/tests/installed_wheel.py"
	cd / && "$(CURDIR)/.wheel/bin/chita-opt" --version

# all but the first, random_exact and darb_decoding need reference data: CHITA_OPT_DATA
bench: $(STAMP)
	$(BIN)/python benchmarks/small_problems.py
	$(BIN)/python benchmarks/official_chita.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/whole_network.py
	$(BIN)/python benchmarks/formulations.py
	$(BIN)/python benchmarks/random_exact.py
	$(BIN)/python benchmarks/exact_instances.py
	$(BIN)/python benchmarks/exact_rivals.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/larger_than_memory.py
	$(BIN)/python benchmarks/darb_decoding.py
	$(BIN)/python benchmarks/darb.py --nets mlpnet

notebooks: $(STAMP)
	$(BIN)/python notebooks/execute.py

clean:
	rm -rf $(VENV) .wheel .typed build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
