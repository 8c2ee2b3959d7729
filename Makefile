# Everything runs from .venv, which holds exactly what requirements/*.txt lock, each file checked
# by its hash. A stamp in .venv says what was installed, so that the next run starts at once.

PYTHON ?= python3
ARGS   :=

# Built when zkv is installed, where there is a compiler; else Python does the same.
C      := $(wildcard zkv/broker/*.c zkv/compiled/*.[ch])

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
LOCK   := $(BIN)/uv --no-config pip compile pyproject.toml --quiet --universal \
          --python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
          --group build $(ARGS)

DOCS   := build/docs

.DEFAULT_GOAL := help
.PHONY: help run test test-clients clients-deps torture fuzz benchmark lint docs demo lock clean

help: ## Show this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/run.stamp ## Start the server with config.toml
	exec $(BIN)/zkv serve --config config.toml $(ARGS)

test: lint ## Check the code, then run the tests: ARGS='-k wal' or ARGS='-m slow' picks some
	$(BIN)/python -m pytest $(ARGS)

test-clients: $(VENV)/dev.stamp ## Run the clients in all languages that are installed here against a server
	$(BIN)/python -m pytest tests/clients $(ARGS)

clients-deps: $(VENV)/dev.stamp ## Install the languages that the clients are written in: Debian or Ubuntu, as root
	$(BIN)/python -m tests.clients install

torture: $(VENV)/dev.stamp ## Break it for half an hour: kills, power cuts, failing disks, retries
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: $(VENV)/dev.stamp ## Compare C with Python on inputs that a fuzzer makes (needs clang): ARGS=-max_total_time=600
	$(BIN)/python -m tests.fuzz lane $(ARGS)
	$(BIN)/python -m tests.fuzz mailbox $(ARGS)

lint: $(VENV)/dev.stamp ## Check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

benchmark: $(VENV)/benchmark.stamp ## Measure zkv beside other servers, and write BENCHMARKS.md (needs gcc): ARGS='--rounds 3'
	$(BIN)/python -m benchmarks.compare --json benchmarks/peers.json $(ARGS)
	$(BIN)/python -m benchmarks.report benchmarks/peers.json BENCHMARKS.md

docs: $(VENV)/dev.stamp ## Build the guide: build/docs/docs/index.html
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . $(DOCS)
	@echo "$(DOCS)/docs/index.html"

demo: $(VENV)/run.stamp ## Load the Unicode table into a server, read it back, restart
	$(BIN)/python clients/python/demo.py $(ARGS)

lock: $(VENV)/dev.stamp ## Lock the dependencies anew; ARGS=--upgrade takes the newest
	$(LOCK) --output-file requirements/run.txt
	$(LOCK) --output-file requirements/dev.txt --extra dev --constraint requirements/run.txt
	$(LOCK) --output-file requirements/benchmark.txt --group benchmark --constraint requirements/dev.txt

clean: ## Remove what was built; the data in var/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache .hypothesis .cache
	find zkv -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "zkv needs Python 3.11 or newer, and '$(PYTHON)' is not." \
	        "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' comes without venv or ensurepip." \
	        "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.stamp: requirements/run.txt pyproject.toml $(C) $(VENV)/made.stamp
	$(PIP) install --require-hashes -r requirements/run.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# requirements/dev.txt holds all of run.txt, in the same versions.
$(VENV)/dev.stamp: requirements/dev.txt requirements/run.txt pyproject.toml $(C) $(VENV)/made.stamp
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(VENV)/run.stamp $@

$(VENV)/benchmark.stamp: requirements/benchmark.txt $(VENV)/dev.stamp
	$(PIP) install --require-hashes -r requirements/benchmark.txt
	@touch $@
