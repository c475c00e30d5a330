PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test quick bench lint check-format clean
demo: $(VENV)/ready
	$(BIN)/hpcrec simulate jobs/demo-sample.toml --out runs/demo.h5
	$(BIN)/mpiexec -n 2 $(BIN)/hpcrec run jobs/demo.toml --out runs/demo

# One process a core, a file of tests stays in one process; the conftest puts the long files first
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/ready-dev lint
	$(PYTEST)

quick: $(VENV)/ready-dev
	$(PYTEST) -m "not slow and not mpi"

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.bench

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs build *.egg-info

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
