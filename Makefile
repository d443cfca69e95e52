# Two commands are enough: `make run` and `make test`. Both install what they need, once.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The system's own python3 first: Debian builds it with optimisations, which pyenv does not, and it is a quarter faster.
# One that lacks python3-venv is taken last, and given it.
PYTHON ?= $(shell for needed in "sys, ensurepip, venv" sys; do \
	for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c "import $$needed; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && exit; done; done)
DIR ?= .pilotwire
# One more than the two cores that a test run is made for: a quarter of the time the tests only wait.
WORKERS ?= 3

.PHONY: run test test-tools test-long test-compiled compiled bench bench-steer bench-guard conformance lint style audit format venv install clean
.DEFAULT_GOAL := run

run: install
	@$(BIN)/pilotwire demo --dir $(DIR) $(ARGS)

PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# The programs that tests run are fetched while pip has one of the cores. mypy is one of the tests: it has a core for a
# minute, while others wait for something.
test: venv
	@$(MAKE) --no-print-directory -j2 install test-tools
	@$(MAKE) --no-print-directory style
	$(PYTEST) -m "not long" $(ARGS)

test-tools:
	@tests/support/install_tools.sh test
	@$(BIN)/python -m compileall -q pilotwire proxy planner model_runtime training

test-long: install style
	@tests/support/install_tools.sh test conformance bench
	$(PYTEST) $(ARGS)

conformance: install
	@tests/support/install_tools.sh conformance
	$(BIN)/python -m tests.conformance $(ARGS)

# The optional compiled build of the wire's hot path (mypyc), in a copy of the tree: build/compiled. PROFILE=no saves
# two minutes and costs speed.
compiled: install
	@tests/support/install_tools.sh compiled
	@rm -rf build/compiled && mkdir -p build/compiled
	@cp -r Makefile pyproject.toml setup.py README.md docs pilotwire proxy planner model_runtime training tests benchmarks build/compiled/
	@cd build/compiled && $(abspath deploy)/compile.sh $(abspath $(BIN))/python
	@echo "compiled: run it with PYTHONPATH=$(abspath build/compiled) PYTHONSAFEPATH=1"

test-compiled: compiled
	cd build/compiled && PYTHONPATH=$(abspath build/compiled) $(abspath $(BIN))/pytest -n $(WORKERS) --dist loadgroup tests/proxy/wire tests/proxy/steering tests/proxy/test_session_dedicated.py tests/proxy/test_session_pooled.py tests/proxy/upstream tests/clients $(ARGS)

bench: compiled
	@tests/support/install_tools.sh bench
	$(BIN)/python -m benchmarks.wire $(ARGS)

bench-steer: install
	$(BIN)/python -m benchmarks.steer $(ARGS)

bench-guard: install
	$(BIN)/python -m benchmarks.never_loses $(ARGS)

lint: style
	$(BIN)/mypy

style: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Known vulnerabilities in what is installed; asks the index and its advisories. What it cannot look up fails it.
audit: install
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit && \
		build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit; }
	@grep -v '^#' deploy/constraints.txt > build/audit/requirements.txt
	@$(BIN)/pip freeze --disable-pip-version-check --exclude-editable >> build/audit/requirements.txt
	@sort -u -o build/audit/requirements.txt build/audit/requirements.txt
	build/audit/bin/pip-audit --requirement build/audit/requirements.txt --no-deps --disable-pip --strict $(ARGS)

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(INSTALLED)

venv:
	@test -n "$(PYTHON)" || { echo "pilotwire needs Python 3.11 or newer: install python3 3.11 (Debian 12 has it) and try again." >&2; exit 1; }
	@tests/support/install_venv.sh $(PYTHON) $(VENV)

$(INSTALLED): pyproject.toml | venv
	@echo "installing pilotwire into $(VENV) (once)"
	@tests/support/install_packages.sh $(VENV)
	@touch $@

clean:
	@test ! -d $(DIR) || ! test -x $(BIN)/pilotwire || $(BIN)/pilotwire pg reset --dir $(DIR)/pg
	rm -rf $(VENV) $(DIR) build *.egg-info
