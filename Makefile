# What developers and CI do. `make help` lists it; every target makes .venv first if it is missing or stale.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

export VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# As llmos_operator.local.layout.cache_root() says.
MODELS := $(or $(LLMOS_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llmos)/hub
export OMP_NUM_THREADS ?= 1
# The demo and the tests start hundreds of programs: where this is set, each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(abspath $(BIN)):$(PATH)

##@ See it
.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: artifacts ## The whole path on this machine: local cluster, three models, preemption, a crash (KEEP=1 leaves it up)
	@$(PY) -m demo $(if $(KEEP),--keep)

##@ Set up
.PHONY: venv
venv: ## Make .venv hold exactly what requirements/*.lock name
	@scripts/venv.sh

.PHONY: binaries
binaries: venv ## Control-plane binaries for the local cluster, found, downloaded or built once into the user's cache
	@$(PY) -m llmos_operator local binaries

.PHONY: models
models: venv ## The demo's models, converted once into the user's cache
	@$(PY) -m llmos_operator.runtime.formats.prepare --out "$(MODELS)"

.PHONY: prometheus
prometheus: venv ## prometheus and promtool, from PATH or the distribution's package, unpacked into the user's cache
	@$(PY) -m scripts.prometheus

.PHONY: chromium
chromium: venv ## A headless Chromium for the console's test, from PATH or the distribution's package, unpacked into the user's cache
	@$(PY) -m scripts.chromium

.PHONY: artifacts
artifacts: binaries models
	@$(MAKE) prometheus || echo "without it the tests of rules and dashboards fail, and only they"

.PHONY: lock
lock: venv ## Resolve requirements/*.lock again (UPGRADE=1 takes newer versions)
	@UV=build/bootstrap/bin/uv scripts/lock.sh $(if $(UPGRADE),--upgrade)

.PHONY: generate
generate: venv ## Write generated files: CRDs, the chart's copies, tables in docs/
	@$(PY) scripts/generate.py

##@ Check
.PHONY: test
test: venv ## Everything below, then every test: what CI runs
	@scripts/test.sh $(ARGS)

.PHONY: lint
lint: venv ## ruff check, ruff format --check, shellcheck, yamllint, hadolint
	@scripts/lint.sh

.PHONY: format
format: venv ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format --quiet .

.PHONY: types
types: venv ## mypy --strict
	@$(BIN)/mypy

.PHONY: contracts
contracts: venv ## Who may import whom (import-linter)
	@$(BIN)/lint-imports --no-logo --cache-dir build/importlinter

.PHONY: spelling
spelling: venv ## codespell
	@git ls-files -z | xargs -0 $(BIN)/codespell

.PHONY: generated
generated: venv ## Generated files are up to date
	@$(PY) scripts/generate.py --check

.PHONY: unit
unit: venv ## Unit, property and scenario tests: no servers, no models
	@$(PY) -m pytest tests/unit tests/property tests/scenarios $(ARGS)

.PHONY: component
component: artifacts ## Tests against a real API server and real models
	@$(PY) -m pytest tests/component tests/node/contract -m "not node" $(ARGS)

.PHONY: e2e
e2e: artifacts ## The whole system in the local cluster
	@$(PY) -m pytest tests/e2e $(ARGS)

.PHONY: node-up
node-up: binaries ## A real Kubernetes node on this machine, without Docker (root on Linux); see docs/real-node.md
	@$(PY) -m scripts.realnode up

.PHONY: node-artifacts
node-artifacts: binaries ## What the node is made of, built once into the user's cache; says why where there can be none
	@$(PY) -m scripts.realnode prepare

.PHONY: node-down
node-down: venv ## End the node and remove all it had
	@$(PY) -m scripts.realnode down

.PHONY: test-node
test-node: artifacts ## The chart and model workloads on the real node (started for it, and ended, unless node-up has run)
	@$(PY) -m pytest tests/node -m node $(ARGS)

.PHONY: stress
stress: venv ## Property tests at length: 5,000 clusters each, 20,000 histories (two hours)
	@LLMOS_PROPERTY_PROFILE=stress $(PY) -m pytest tests/property $(ARGS)

.PHONY: bench
bench: artifacts ## Measure, print tables, and write docs/benchmarks.md (ONLY=name runs one)
	@$(PY) -m tests.bench $(ONLY)

.PHONY: bench-runtime
bench-runtime: artifacts ## Measure every bar of the runtime against its peers, made once into the user's cache (an hour; ROUNDS=n, DRY=1, QUICK=1)
	@$(PY) -m tests.bench runtime $(if $(DRY)$(QUICK),--dry)

.PHONY: bench-e2e
bench-e2e: artifacts ## Measure the operator on 500 and 1,000 nodes beside kube-scheduler and a bare client (20 min)
	@$(PY) -m tests.bench e2e scale

.PHONY: board-pictures
board-pictures: artifacts ## Draw the dashboards' panels from a real Prometheus' answers into docs/images
	@LLMOS_SCREENSHOTS=docs/images $(PY) -m pytest tests/e2e/test_metrics.py -k drawn $(ARGS)

##@ Tidy up
.PHONY: clean
clean: ## Remove build outputs and tool caches (the user's cache of binaries and models stays)
	@rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find llmos_operator tests demo scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## clean, and remove .venv
	@rm -rf $(VENV)
