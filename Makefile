# Needs only make and Python 3.11 or newer. Every target sets up .venv first if the locks changed.

BOOT := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SEED ?= 1
SEEDS ?= 200
FUZZ_S ?= 60
TRACE ?=
WORKERS ?= 2
PEERS ?= ../shared/bench/peers
WORKS ?= W1a,W1b,W2a,W2b,W5,W6,W7
TABLE := .venv/faults.tsv
export PYTHONHASHSEED ?= 0

.PHONY: help venv demo run test test-long faults load check format fuzz sim bench bench-peers lock schema clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

venv: .venv/stamp  ## set up .venv from the lock

.venv/stamp: requirements-dev.lock pyproject.toml
	@$(BOOT) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Roost needs Python 3.11 or newer; found " + sys.version.split()[0])'
	$(BOOT) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

demo: venv  ## two nodes and two clients side by side (a script of it where there is no terminal)
	$(BIN)/roost demo

run: venv  ## start the node of ./node.yaml
	$(BIN)/roost serve -c node.yaml

test: venv  ## all tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-long: venv  ## more seeds, more fuzz
	SEEDS=5000 $(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

faults: venv  ## crashes, disks, clocks, lines: every round of every case, and a table of them
	@rm -f $(TABLE)
	FAULTS=all FAULTS_TABLE=$(TABLE) $(BIN)/python -m pytest -q -n $(WORKERS) tests/faults; code=$$?; \
		$(BIN)/python -m tests.faults.table $(TABLE); exit $$code

load: venv  ## thousands of clients, long queues, slow readers: each case at its full size, with what it measured
	LOAD=full $(BIN)/python -m pytest -q -s tests/load

check: venv  ## format, lint, types, imports, tidiness, purity
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py tests/test_purity.py

format: venv  ## rewrite the code in our format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: venv  ## every decoder for FUZZ_S seconds, guided by coverage
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

sim: venv  ## one seeded run of the simulator: make sim SEED=7 TRACE=1
	SEED=$(SEED) TRACE=$(TRACE) $(BIN)/python -m tests.sim

bench: venv  ## messages per second, memory, latency
	$(BIN)/python -m tests.bench

bench-peers: venv  ## the same work against ejabberd too, where it is installed: make bench-peers PEERS=FOLDER
	$(BIN)/python $(PEERS)/bench.py $(if $(shell command -v ejabberdctl),ejabberd/postgres) roost/sqlite \
		--adapter roost=tests/bench/peer.py:Roost --works $(WORKS)

schema: venv  ## the generated files: node.example.yaml
	$(BIN)/python -m node.config_file > node.example.yaml

# Compiles in an environment of its own, so that the tool is not among our dependencies. The options keep out of
# the files whatever mirror this machine uses.
COMPILE := --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: venv  ## lock the newest allowed dependencies
	$(BOOT) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet pip-tools
	.venv/lock/bin/pip-compile $(COMPILE) --upgrade -o requirements.lock pyproject.toml
	.venv/lock/bin/pip-compile $(COMPILE) --upgrade --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:  ## forget .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
