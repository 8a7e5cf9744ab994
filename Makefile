# Needs GNU make and Python 3.11; everything else is installed into .venv.
# Another interpreter: make PYTHON=/path/to/python3.11 test

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
IS_311 := import sys; sys.exit(sys.version_info[:2] != (3, 11))
# The first interpreter that really is 3.11 (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c '$(IS_311)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-fast test-slow check format bench docs clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
		while IFS='|' read -r target text; do printf '%-12s %s\n' "$$target" "$$text"; done

quickstart: $(VENV)/.runtime  ## meta-train, evaluate and export a small optimizer
	$(BIN)/python -m experiments.quickstart

PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(VENV)/.dev  ## the default tests (WORKERS=2)
	$(PYTEST)

test-fast: $(VENV)/.dev  ## the default tests nearest to what has changed since main
	@tests=$$($(BIN)/python -m tests.changed) && \
		{ [ -z "$$tests" ] && echo "nothing has changed since main" || $(PYTEST) $$tests; }

# Programs are compiled quickly in all tests but those marked optimized, which are about
# the bits of programs as users run them and so need a process of their own.
test-slow: $(VENV)/.dev  ## the other tests: slow ones, and those of optimized programs
	$(PYTEST) -m "slow and not optimized" --timeout 1800
	METATRAIN_OPTIMIZED=1 $(PYTEST) -m optimized --timeout 1800

check: $(VENV)/.dev  ## lint, formatting, types and import rules
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command as run; run(["--no-logo"])'

format: $(VENV)/.dev  ## sort imports, fix what can be fixed, format
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.runtime  ## speed of meta-training, of every family and optimizer, and of the data
	$(BIN)/python -m benchmarks.meta_training
	$(BIN)/python -m benchmarks.families
	$(BIN)/python -m benchmarks.image_data
	$(BIN)/python -m benchmarks.text_data
	$(BIN)/python -m benchmarks.distributions
	$(BIN)/python -m benchmarks.optimizers

docs: $(VENV)/.docs  ## build the documentation's site into site/
	$(BIN)/zensical build --strict --clean

clean:  ## remove .venv, caches and build output; keeps runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache .grimp_cache .cache site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is made by the last line only: an interrupted install is done again.
$(VENV)/.runtime: requirements.txt pyproject.toml
	@"$(PYTHON)" -c '$(IS_311)' >/dev/null 2>&1 || { echo \
		"error: Python 3.11 not found (PYTHON='$(PYTHON)'): install it, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $@
	@if ! $(BIN)/python -c '$(IS_311)' >/dev/null 2>&1; then rm -rf $(VENV); fi
	@"$(PYTHON)" -m venv $(VENV) || { echo \
		"error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt $(VENV)/.runtime
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@
