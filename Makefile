# keepstep: `make help` lists what there is. Works with GNU make 3.81 and newer.

PYTHON ?= python3
VENV ?= .venv
DATA_DIR ?=
WHEEL ?=
DIST ?= dist
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
CHAOS_ARGS ?=
TRACE ?=
BASE ?= main
SCENARIOS ?= w1-publish w2-relay

# rustup installs here; a shell opened before it was installed does not have it in PATH yet.
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export PATH := $(CARGO_BIN):$(PATH)
export PYTHON TRACE
# Only a PYTHON that somebody asked for replaces an environment that works.
PREPARE := $(PYTHON) scripts/prepare.py --venv "$(VENV)" $(if $(filter file,$(origin PYTHON)),--any-interpreter)
# cargo and maturin build for the interpreter that the package runs on.
RUN_PYTHON := $(abspath $(VENV))/bin/python
BIN := $(abspath $(VENV))/bin

PYTHON_FOLDERS := python tests scripts $(wildcard bench examples)
# The rules that ruff lacks; ASYNC91x (a checkpoint on every path) would forbid quick returns.
FLAKE8_ASYNC_RULES := ASYNC101,ASYNC102,ASYNC103,ASYNC104,ASYNC111,ASYNC112,ASYNC113,ASYNC118,ASYNC119,ASYNC120,ASYNC121,ASYNC122,ASYNC123,ASYNC900
# Checks the handshake's proof. It names the newest compiler there is as its minimum, but builds with ours.
INSTALL_VERIFPAL := cargo install --quiet verifpal --version 1.6.7 --locked --ignore-rust-version --no-default-features --features cli --root target/tools
UV_COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: help serve test test-ops test-autobahn chaos demo bench bench-quick bench-compare bench-growth bench-soak bench-smoke bench-enumeration bench-revocation bench-retention bench-backup bench-document bench-k6 bench-artillery bench-peers bench-micro bench-instructions lint lint-python lint-rust format wheel lock clean environment

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  variables: PYTHON=python3.13  DATA_DIR=folder  WHEEL=file.whl (serve)  TRACE=file (demo)  PYTEST_ARGS='-k resume' (test)"

serve: ## set up all it needs, then run a server on an embedded PostgreSQL (data in DATA_DIR, default ./data)
	@sh scripts/doctor.sh $(if $(WHEEL),wheel,serve)
	@$(PREPARE) $(if $(WHEEL),--wheel "$(WHEEL)") serve
	@exec env $(if $(DATA_DIR),KEEPSTEP_DATA_DIR="$(DATA_DIR)") "$(BIN)/keepstep" serve

# What checks and formats Rust needs two components more than what builds it.
NEED := serve
test lint lint-rust format: NEED := test

environment:
	@sh scripts/doctor.sh $(NEED)
	@$(PREPARE) dev

test: lint ## lint, Rust tests, then the whole suite on a real PostgreSQL with its coverage; needs no root
	cargo test --locked --quiet --workspace --exclude keepstep-py
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --cov --cov-report=term-missing:skip-covered --cov-fail-under=95 $(PYTEST_ARGS)

test-ops: ## image, handshake proof, set-up as an ordinary user, full disk: needs root and Debian packages
	@sh scripts/doctor.sh ops
	@$(PREPARE) dev
	$(INSTALL_VERIFPAL)
	$(BIN)/python -m pytest tests/ops $(PYTEST_ARGS)

test-autobahn: environment ## Autobahn's own WebSocket cases, with the sockets moved either way; needs Python 2.7; CASES='2.* 7.*'
	@$(BIN)/python -m tests.autobahn $(CASES)

demo: environment ## a real editing session by three devices through a real server; TRACE=file plays another
	@$(BIN)/python -m examples.collaborative_editing

chaos: environment ## kill -9 of server and database under load, then check that nothing was lost; CHAOS_ARGS='--kills 3'
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

bench: environment ## every scenario with its repetitions, then the report, in build/bench; takes an hour; BENCH_ARGS
	@$(BIN)/python -m bench run all $(BENCH_ARGS)
	@$(BIN)/python -m bench.report build/bench/*.json

bench-quick: environment ## every scenario once and short, then the report, in build/bench-quick; BENCH_ARGS
	@$(BIN)/python -m bench run all --quick --output build/bench-quick $(BENCH_ARGS)
	@$(BIN)/python -m bench.report build/bench-quick/*.json --output build/bench-quick/report.html

bench-compare: environment ## this checkout against another commit, in pairs: BASE=main SCENARIOS='w1-publish'; BENCH_ARGS
	@$(BIN)/python -m bench compare --base "$(BASE)" $(BENCH_ARGS) $(SCENARIOS)

bench-growth: environment ## W1 and W2 on millions of stored events beside an empty database; BENCH_ARGS='--events 20000000'
	@$(BIN)/python -m bench growth $(BENCH_ARGS)

bench-soak: environment ## a steady relay for hours; fails where the server's memory grows; BENCH_ARGS='--hours 2'
	@$(BIN)/python -m bench soak $(BENCH_ARGS)

bench-smoke: environment ## durable, verified, relayed events per second, latencies and cost, durability stated; BENCH_ARGS
	@$(BIN)/python -m bench run smoke $(BENCH_ARGS)

bench-enumeration: environment ## whether answers to known and unknown users take the same time; BENCH_ARGS='--count 1000'
	@$(BIN)/python -m bench.enumeration $(BENCH_ARGS)

bench-revocation: environment ## from a revocation to the closed socket, on two servers; BENCH_ARGS='--count 100'
	@$(BIN)/python -m bench.revocation $(BENCH_ARGS)

bench-backup: environment ## publishing beside a backup; backing up, restoring, verifying, archiving; BENCH_ARGS='--count 20000'
	@$(BIN)/python -m bench.backup $(BENCH_ARGS)

bench-retention: environment ## publishing while old events go, disk returned; takes long; BENCH_ARGS='--count 5000000'
	@$(BIN)/python -m bench.retention $(BENCH_ARGS)

bench-micro: environment ## the hot paths' parts, one by one, in Rust and in Python; BENCH_ARGS='verify' (only Rust's of that name)
	PYO3_PYTHON=$(RUN_PYTHON) cargo bench --locked --package keepstep-core --bench hot_path -- $(BENCH_ARGS)
	$(BIN)/python -m pytest -n0 --benchmark-enable bench/micro

bench-instructions: environment ## whether hot functions take more instructions than what is kept; needs valgrind; BENCH_ARGS=--keep
	@$(BIN)/python -m bench.instructions $(BENCH_ARGS)

bench-document: environment ## a paper as it was written, edit by edit: stored, then read by another device; TRACE=file
	@$(BIN)/python -m bench.document $(BENCH_ARGS)

bench-k6: environment ## REST, server-sent events and upgrades by k6 (needs go and node); BENCH_ARGS='--script rest'
	@$(BIN)/python -m bench.external k6 $(BENCH_ARGS)

bench-artillery: environment ## devices in JavaScript with the full handshake by Artillery (needs node); BENCH_ARGS
	@$(BIN)/python -m bench.external artillery $(BENCH_ARGS)

bench-peers: environment ## the same workloads on NATS JetStream, nostr-rs-relay and keepstep; builds them; BENCH_ARGS
	@$(BIN)/python -m bench.peers $(BENCH_ARGS)

lint: environment lint-python lint-rust ## every check that runs nothing

lint-python: environment
	$(BIN)/ruff check --quiet $(PYTHON_FOLDERS)
	$(BIN)/ruff format --quiet --check $(PYTHON_FOLDERS)
	$(BIN)/flake8-async --enable=$(FLAKE8_ASYNC_RULES) --transform-async-generator-decorators=fixture,pytest.fixture $$(find $(PYTHON_FOLDERS) -name '*.py')
	$(BIN)/mypy $(PYTHON_FOLDERS)
	cd python && $(BIN)/python -m mypy.stubtest --mypy-config-file ../pyproject.toml keepstep._keepstep

lint-rust: environment
	cargo fmt --all --check
	PYO3_PYTHON=$(RUN_PYTHON) cargo clippy --locked --quiet --workspace --all-targets -- -D warnings

format: environment ## format both languages, and mend what can be mended by itself
	$(BIN)/ruff check --quiet --fix-only $(PYTHON_FOLDERS)
	$(BIN)/ruff format --quiet $(PYTHON_FOLDERS)
	cargo fmt --all

# Not `maturin build --sdist`: it builds the wheel from the source distribution, whose Cargo.lock it may not shorten.
wheel: environment ## build the wheel and the source distribution into dist/
	$(BIN)/maturin build --release --locked --out "$(DIST)"
	$(BIN)/maturin sdist --out "$(DIST)"

lock: environment ## resolve the dependencies anew and write the hash-checked lock files
	$(UV_COMPILE) pyproject.toml --extra server --output-file requirements.lock
	$(UV_COMPILE) --group build --constraints requirements.lock --output-file requirements-build.lock
	$(UV_COMPILE) pyproject.toml --extra server --group dev --constraints requirements.lock --output-file requirements-dev.lock

clean: ## remove everything that was built or installed here (never DATA_DIR)
	rm -rf "$(VENV)" build dist target htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f python/keepstep/_keepstep*.so
	find $(PYTHON_FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +
