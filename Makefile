# Two commands on a fresh machine with Python 3.11 or newer:
#   make quickstart   installs into .venv, then makes a small world and trains PPO-max and vanilla PPO in it; in Chinese: make
#                     quickstart ARGS="--language zh". make quickstart-from-scratch trains SFT and reward model too
#   make test         installs into .venv, then runs lint, types and tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart quickstart-from-scratch test install lint clean

quickstart: $(INSTALLED)
	$(BIN)/python recipes/quickstart.py $(ARGS)

quickstart-from-scratch: $(INSTALLED)
	$(BIN)/python recipes/quickstart.py --from-scratch $(ARGS)

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal  # neighbours stay together, and with them what a file makes once

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "needs $(PYTHON); name another with make PYTHON=python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
