# Every target first installs what it needs, which is quick if nothing is missing.
# PYTHON=python3.12 chooses the interpreter of a new .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The tests start hundreds of sidecars, which find their modules compiled, as in the image.
unexport PYTHONDONTWRITEBYTECODE
# The folders with code, for the formatter, the linter and the type checker.
CODE := $(wildcard sidecar tests benchmarks images)
TYPED := $(wildcard sidecar tests/support benchmarks images)
# Six modules at a time: most of the time a test waits for somebody. For the whole set only, since
# each process starts servers of its own.
PARALLEL := -n 6 --dist loadscope --no-loadscope-reorder
# Tests that need no server of a store: about a minute.
FAST := $(wildcard $(addprefix tests/,architecture control/catalogue control/injection secrets filesystem install system))
# What talks to an S3 server, and the long tests for Ceph; tests/writing/test_conformance.py runs the
# conformance suite on a mounted bucket.
ON_S3 := tests/store tests/writing tests/reading tests/mount -k "not (gcs or azure or rclone or strict)"
LONG_ON_CEPH := -m soak $(addprefix tests/,store/test_ceph.py writing/test_ceph.py writing/test_conformance.py)

.PHONY: help demo test test-cluster check lint format soak soak-ceph soak-tools bench bench-node clean preflight install-demo install-test

help:  ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*##  */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

preflight:
	@scripts/preflight.sh

install-demo:
	@scripts/install.sh demo

install-test:
	@scripts/install.sh test

demo: install-demo  ## the main job on this machine, with an embedded object store
	@sidecar demo

test: preflight install-test  ## every test, against real servers and real mounts
	@pytest $(PARALLEL) $(ARGS)

test-cluster: install-test  ## what only a real Kubernetes can show, on the one that KUBECONFIG names
	@scripts/test-cluster.sh $(ARGS)

check: lint  ## format, lint, types, import contracts, fast tests: about a minute
	@pytest -q $(FAST) $(ARGS)

lint: install-test  ## format, lint, types, import contracts
	@ruff format --check --quiet $(CODE)
	@ruff check --quiet $(CODE)
	@mypy $(TYPED)
	@lint-imports --no-cache --no-logo

format: install-test  ## rewrite the code as the formatter and the linter want it
	@ruff format --quiet $(CODE)
	@ruff check --quiet --fix $(CODE)

soak: preflight install-test  ## the long tests, which `make test` leaves out
	@scripts/install.sh soak
	@pytest -m "soak and not cluster" --timeout 0 $(ARGS)

soak-ceph: install-test  ## the tests of S3, on Ceph's gateway
	@scripts/install.sh soak
	@MOUNT_SIDECAR_TEST_S3=ceph pytest --timeout 0 $(ON_S3) $(ARGS)
	@MOUNT_SIDECAR_TEST_S3=ceph pytest --timeout 0 $(LONG_ON_CEPH) $(ARGS)

soak-tools: preflight install-test  ## strict testers of file systems: pjdfstest, fsx, stress-ng and their like
	@scripts/install.sh soak-tools
	@pytest -m soak_tools --timeout 0 tests/soak_tools $(ARGS)

bench: install-test  ## our mounts beside their peers, on this machine
	@scripts/install.sh bench
	@python -m benchmarks $(ARGS)

bench-node: install-test  ## what one mount can do on this machine, in five minutes
	@python -m benchmarks.node $(ARGS)

clean:  ## remove what the targets installed and made
	rm -rf .venv .venv-torch .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
		dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
