# Two commands on a fresh machine: `make quickstart` and `make test`. Each installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(patsubst %/,%,$(dir $(wildcard plugins/*/pyproject.toml))))
STAMP := $(VENV)/.installed

.PHONY: install quickstart test lint types check clean help

help:
	@echo "make quickstart   install, then implant, measure and remove a real backdoor (offline)"
	@echo "make test         install, then run every test"
	@echo "make lint types   style and type checks"
	@echo "make install      core and all plugins into $(VENV)"

install: $(STAMP)

# All members in one pip call, so that a plugin's dependency on the core resolves to this checkout.
$(STAMP): pyproject.toml $(addsuffix /pyproject.toml,$(PLUGINS))
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable . \
	  $(addprefix --editable ./,$(PLUGINS)) --group dev
	@touch $(STAMP)

quickstart: install
	$(BIN)/backdoorkit run --file recipes/quickstart.toml --store quickstart-runs

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Each plugin is checked by itself: their test folders share module names.
types: install
	$(BIN)/mypy
	@set -e; for plugin in $(PLUGINS); do $(BIN)/mypy $$plugin/src; done

check: lint types test

clean:
	rm -rf $(VENV) quickstart-runs
