# Two commands are enough: `make run` and `make test`. Both install what they need, once.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DIR ?= .pilotwire
WORKERS ?= 2

.PHONY: run test test-long bench conformance lint format install clean
.DEFAULT_GOAL := run

run: install
	@$(BIN)/pilotwire run --dir $(DIR) $(ARGS)

test: install lint
	@tests/support/install_tools.sh test
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup -m "not long" $(ARGS)

test-long: install lint
	@tests/support/install_tools.sh test conformance bench
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup $(ARGS)

conformance: install
	@tests/support/install_tools.sh conformance
	$(BIN)/python -m tests.conformance $(ARGS)

bench: install
	@tests/support/install_tools.sh bench
	$(BIN)/python -m benchmarks.wire $(ARGS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "pilotwire needs Python 3.11 or newer: install python3 3.11 (Debian 12 has it) and try again." >&2; exit 1; }
	@tests/support/install_venv.sh $(PYTHON) $(VENV)
	@echo "installing pilotwire into $(VENV) (a minute, once)"
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	@test ! -d $(DIR) || ! test -x $(BIN)/pilotwire || $(BIN)/pilotwire pg reset --dir $(DIR)/pg
	rm -rf $(VENV) $(DIR) build *.egg-info
