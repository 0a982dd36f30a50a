# Two commands on a fresh machine with only Python (>= 3.11) and make:  make demo  and  make test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs

.PHONY: demo test test-gpu test-slow prove lint

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm
	touch $@

demo: $(VENV)/installed
	$(BIN)/dreamsa demo --runs $(RUNS)

test: $(VENV)/installed lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-gpu: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu

test-slow: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m slow

# Reliability: kills, faults, damage and hostile requests; at most an hour, continues where it was stopped.
prove: $(VENV)/installed
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(BIN)/python -m prove

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
