# Everything runs from .venv, which holds exactly what requirements/*.txt lock, each file checked
# by its hash. A stamp in .venv says what was installed, so that the next run starts at once.

PYTHON ?= python3
ARGS   :=

# The wheel of zkv for packages; empty: one of this checkout is built.
WHEEL  ?=
export WHEEL

# Tests that run at a time: they wait more than they compute.
TESTS  ?= 5

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
LOCK   := $(BIN)/uv --no-config pip compile pyproject.toml --quiet --universal \
          --python-version 3.11 --generate-hashes --custom-compile-command "make lock" $(ARGS)

DOCS   := build/docs

# Built when zkv is installed, where there is a compiler; else Python does the same.
C      := $(wildcard zkv/broker/*.c zkv/compiled/*.[ch])
BUILT  := $(and $(wildcard zkv/broker/_frames*.so),$(wildcard zkv/compiled/_store*.so))

# What is not built, and has not failed, is built once there is a compiler.
AGAIN  := $(if $(or $(BUILT),$(wildcard $(VENV)/failed.stamp)),,$(if \
          $(wildcard $(VENV)/run.stamp),$(shell $(BIN)/python -m zkv.cli.built --possible && echo again)))

# The old binaries go first: a build that fails would leave them where they are found, and writing
# into one takes it from under a server that runs.
define INSTALL
rm -f $(VENV)/build.log $(VENV)/failed.stamp
find zkv -name '*.so' -delete
$(PIP) install --log $(VENV)/build.log --no-deps --no-build-isolation -e .
@$(BIN)/python -m zkv.cli.built $(VENV)/build.log || touch $(VENV)/failed.stamp
endef

.DEFAULT_GOAL := help
.PHONY: again help run test test-python test-clients clients-deps monitor-deps etcd-deps browser-deps packages-deps test-contrib torture fuzz \
        deb image test-packages soak failover torture-cluster mutants bench benchmark peers generate lint dist dist-check \
        release-check docs demo standby cluster lock \
        clean

help: ## Show this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/run.stamp ## Start the server with config.toml
	exec $(BIN)/zkv serve --config config.toml $(ARGS)

test: lint ## Check the code, then run the tests: ARGS='-k wal' or ARGS='-m slow' picks some
	$(BIN)/python -m pytest -n $(TESTS) $(ARGS)

test-python: ## Run the tests under another Python: make test-python PYTHON=python3.14
	$(MAKE) test VENV=.venv-$(notdir $(PYTHON))

test-clients: $(VENV)/dev.stamp ## Run the clients in all languages that are installed here against a server
	$(BIN)/python -m pytest tests/clients $(ARGS)

clients-deps: $(VENV)/dev.stamp ## Install the languages that the clients are written in: Debian or Ubuntu, as root
	$(BIN)/python -m tests.clients install

monitor-deps: ## Install Prometheus, which tests of the metrics run: Debian or Ubuntu, as root
	apt-get install --yes --quiet --no-install-recommends prometheus

etcd-deps: ## Install etcd, which tests of its client run: Debian or Ubuntu, as root
	apt-get install --yes --quiet --no-install-recommends etcd-server etcd-client

packages-deps: ## Install what builds and tries the package and the image: Debian or Ubuntu, as root
	apt-get install --yes --quiet --no-install-recommends buildah debhelper iproute2 mmdebstrap systemd-container

deb: $(VENV)/dev.stamp ## Build a package for Debian: WHEEL=dist/zkv-... takes that wheel
	$(BIN)/python -m tools.packages $(addprefix --wheel ,$(WHEEL)) deb

image: $(VENV)/dev.stamp ## Build an image for containers: ARGS="--tag registry/zkv --base python:3.13-slim"
	$(BIN)/python -m tools.packages $(addprefix --wheel ,$(WHEEL)) image $(ARGS)

test-packages: $(VENV)/packages.stamp ## Install the package in a Debian, run the image, check the manifests: as root
	$(BIN)/python -m pytest -m slow tests/contrib/test_packages.py $(ARGS)

browser-deps: ## Install chromium, in which tests open the console: Debian or Ubuntu, as root
	apt-get install --yes --quiet --no-install-recommends chromium

test-contrib: $(VENV)/dev.stamp ## Run frameworks' own tests with the adapters (fetches them): ARGS='django --pinned' picks some
	$(BIN)/python -m tests.contrib $(ARGS)

torture: $(VENV)/dev.stamp ## Break it for half an hour: kills, power cuts, failing disks, retries
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: $(VENV)/dev.stamp ## Compare C with Python on inputs that a fuzzer makes (needs clang): ARGS=-max_total_time=600
	$(BIN)/python -m tests.compiled.fuzz lane $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz slices $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz writes $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz values $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz mailbox $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz log $(ARGS)
	$(BIN)/python -m tests.compiled.fuzz snapshot $(ARGS)

soak: $(VENV)/dev.stamp ## Run it for an hour beside clients of every bad kind: ARGS="--minutes 5" for less
	$(BIN)/python -m tests.soak $(ARGS)

failover: $(VENV)/dev.stamp ## Fail over between machines that break, 200 times: ARGS="--rounds 20 --seed 1", --chain or --pair for three
	$(BIN)/python -m tests.failover $(ARGS)

torture-cluster: $(VENV)/dev.stamp ## Fail over between three members and three nodes of etcd, 100 times: ARGS="--rounds 20 --seed 1"
	$(BIN)/python -m tests.torture_cluster $(ARGS)

mutants: $(VENV)/dev.stamp ## Plant bugs one at a time, and see that tests catch them (needs a C compiler): ARGS=lane.c picks some
	$(BIN)/python -m tests.mutants $(ARGS)

generate: $(VENV)/dev.stamp ## Make what is made from other sources: the client for threads, names in C, messages of etcd, the licences
	$(BIN)/python tools/licences.py
	$(BIN)/python tools/mirror.py
	$(BIN)/python tools/rpc.py
	$(BIN)/python tools/unasync.py

lint: $(VENV)/dev.stamp ## Check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/licences.py --check
	$(BIN)/python tools/mirror.py --check
	$(BIN)/python tools/names.py
	$(BIN)/python tools/rpc.py --check
	$(BIN)/python tools/unasync.py --check

bench: $(VENV)/benchmark.stamp ## Measure the main loads beside other servers, in 2 minutes (needs gcc): ARGS='--rows MPUT'
	$(BIN)/python -m benchmarks.run --short $(ARGS)

benchmark: $(VENV)/benchmark.stamp ## Measure all of them in 20 minutes, and write BENCHMARKS.md and docs/sharing.md
	$(BIN)/python -m benchmarks.run --json benchmarks/results.json
	$(BIN)/python -m benchmarks.report benchmarks/results.json BENCHMARKS.md
	$(BIN)/python -m benchmarks.sharing --json benchmarks/sharing.json docs/sharing.md

peers: ## Install the servers to compare that Debian or Ubuntu has, as root; Valkey and NATS come as wheels
	apt-get install --yes --quiet --no-install-recommends redis-server memcached etcd-server etcd-client

dist: $(VENV)/dist.stamp ## Make what is published, in dist/: a source distribution, and a wheel for each platform
	$(BIN)/python -m tools.wheels dist $(ARGS)

dist-check: $(VENV)/dist.stamp ## Install what is in dist/ on other systems, and run it there: Debian or Ubuntu, as root
	$(BIN)/python -m tools.systems dist $(ARGS)

release-check: $(VENV)/dist.stamp ## Check all that a release needs, in hours; build/release.md tells: ARGS='wheels docs' picks some
	$(BIN)/python -m tools.release $(ARGS)

docs: $(VENV)/dev.stamp ## Build the guide: build/docs/index.html
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . '$(DOCS)'
	@echo '$(DOCS)/index.html'

demo: $(VENV)/run.stamp ## Load the Unicode table into a server, read it back, restart
	$(BIN)/python clients/python/demo.py $(ARGS)

standby: $(VENV)/run.stamp ## Show a second machine on this one: a standby, a promotion, and the way back
	$(BIN)/python tools/standby.py

cluster: $(VENV)/dev.stamp ## Show a store that survives its machine: three members, etcd, and a leader that dies
	$(BIN)/python -m tools.cluster

lock: $(VENV)/dev.stamp ## Lock the dependencies anew; ARGS=--upgrade takes the newest
	$(LOCK) --output-file requirements/run.txt --group build
	$(LOCK) --output-file requirements/dev.txt --group build --extra dev --constraint requirements/run.txt
	$(LOCK) --output-file requirements/service.txt --extra etcd --extra metrics --constraint requirements/dev.txt
	$(LOCK) --output-file requirements/packages.txt --group packages --constraint requirements/dev.txt
	$(LOCK) --output-file requirements/benchmark.txt --group build --group benchmark --constraint requirements/dev.txt
	$(LOCK) --output-file requirements/dist.txt --group build --group dist --constraint requirements/dev.txt

clean: ## Remove what was built; the data in var/ stays
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
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

$(VENV)/run.stamp: requirements/run.txt pyproject.toml $(C) $(VENV)/made.stamp $(AGAIN)
	$(PIP) install --require-hashes -r requirements/run.txt
	$(INSTALL)
	@touch $@

# requirements/dev.txt holds all of run.txt, in the same versions.
$(VENV)/dev.stamp: requirements/dev.txt requirements/run.txt pyproject.toml $(C) $(VENV)/made.stamp $(AGAIN)
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(INSTALL)
	@touch $(VENV)/run.stamp $@

$(VENV)/packages.stamp: requirements/packages.txt $(VENV)/dev.stamp
	$(PIP) install --require-hashes -r requirements/packages.txt
	@touch $@

$(VENV)/dist.stamp: requirements/dist.txt $(VENV)/dev.stamp
	$(PIP) install --require-hashes -r requirements/dist.txt
	@touch $@

$(VENV)/benchmark.stamp: requirements/benchmark.txt $(VENV)/dev.stamp
	$(PIP) install --require-hashes -r requirements/benchmark.txt
	@touch $@
