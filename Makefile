# Needs GNU make and one of Python 3.11 to 3.13; everything else is installed into .venv.
# A certain interpreter: make PYTHON=/path/to/python3.12 test

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# The newest that is there and runs (a shim of pyenv may exist and not run).
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
candidates = python3.$(1) $(wildcard $(PYENV)/3.$(1).*/bin/python3.$(1))
PYTHON ?= $(shell for p in $(foreach minor,13 12 11,$(call candidates,$(minor))); do \
	"$$p" -c '' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
VERSION = -c 'import sys; print(*sys.version_info[:2], sep=".")'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-fast smoke test-slow check format lock bench docs clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
		while IFS='|' read -r target text; do printf '%-12s %s\n' "$$target" "$$text"; done

quickstart: $(VENV)/.runtime  ## meta-train, evaluate and export a small optimizer
	$(BIN)/python -m experiments.quickstart

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
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
	$(BIN)/python -m benchmarks.start

# One file for all Pythons; pins that still fit stay.
LOCK = $(BIN)/uv pip compile --quiet --universal --no-annotate pyproject.toml \
	--extra tfds --extra text --extra tensorboard --extra slurm
lock: $(VENV)/.dev  ## pin the requirements of every Python anew
	$(LOCK) -o requirements.txt
	$(LOCK) --extra dev -c requirements.txt -o requirements-dev.txt
	$(LOCK) --extra docs -c requirements.txt -o requirements-docs.txt

docs: $(VENV)/.docs  ## build the documentation's site into site/
	$(BIN)/zensical build --strict --clean

clean:  ## remove .venv, caches and build output; keeps runs/
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache .grimp_cache .cache site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What users do first, in a minute: for a second version of Python.
SMOKE = tests/tasks/test_imports.py tests/test_parity.py tests/examples \
	tests/experiments/test_quickstart.py
smoke: $(VENV)/.dev  ## some of the default tests, those of what users do first
	$(PYTEST) $(SMOKE)

# A stamp is made by the last line only: an interrupted install is done again.
$(VENV)/.runtime: requirements.txt pyproject.toml
	@case "$$("$(PYTHON)" $(VERSION) 2>/dev/null)" in 3.11|3.12|3.13) ;; *) echo \
		"error: Python 3.11, 3.12 or 3.13 not found (PYTHON='$(PYTHON)'): install one, or make PYTHON=/path/to/python3.12" >&2; exit 1;; esac
	@rm -f $@
	@[ "$$($(BIN)/python $(VERSION) 2>/dev/null)" = "$$("$(PYTHON)" $(VERSION))" ] || rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV) || { echo \
		"error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-torch.txt $(VENV)/.runtime
	@rm -f $@
	$(INSTALL) -r requirements-dev.txt -r requirements-torch.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt $(VENV)/.runtime
	@rm -f $@
	$(INSTALL) -r requirements-docs.txt
	@touch $@
