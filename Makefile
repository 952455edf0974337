PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# pytest's -m expression: `make test MARKERS=ceph` runs one kind of tests.
MARKERS ?= not slow and not ray
# Tests at once. Those marked `ray` must run alone: Ray gives a node 30 s to start, and no longer.
WORKERS ?= 2
# Further arguments for pytest, such as ARGS="-x tests/test_store.py".
ARGS ?=
# Of `make chaos`: how long things are killed, and the seed of what is drawn.
MINUTES ?= 3
SEED ?= 1
# Of `make check-infra`: the manifests that you edited.
FILES ?= $(wildcard infra/vm/*.yaml infra/jobs/*.yaml infra/serve/*.yaml)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all chaos lint format lock check-infra release-check audit clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## three synthetic slides become embeddings; a query over them
	$(BIN)/historay demo

test: lint  ## lint, types, import contracts, and the tests that take seconds
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "$(MARKERS)" $(ARGS)

test-all: MARKERS = not ray
test-all: test  ## the same with every test
	$(BIN)/pytest -m ray $(ARGS)

chaos: $(INSTALLED)  ## kill everything while a job runs, then look at every row (MINUTES=3 SEED=1)
	$(BIN)/python -m tests.cluster.chaos --minutes $(MINUTES) --seed $(SEED)

lint: $(INSTALLED)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)  ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(INSTALLED)  ## write constraints.txt anew (versions already there are kept; delete a line to move it)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra release --quiet \
	    --no-header --no-annotate --output-file constraints.txt

check-infra: $(INSTALLED)  ## what is wrong with manifests, and what is left to edit (FILES="infra/vm/aws.yaml ...")
	@$(BIN)/python -m tests.infra.check $(FILES)

release-check: $(INSTALLED)  ## wheel, sdist and bill of materials into dist/; both run the demo
	.ci/release

audit: $(INSTALLED)  ## known vulnerabilities in what constraints.txt pins (asks pypi.org)
	.ci/audit

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf .venv build dist *.egg-info demo-output \
	    .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a set-up that broke off is done again.
# Without compiled bytecode every worker would compile torch anew: seconds each.
# uv does not read pip's configuration: where only pip knows the way to a package index, pip goes.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	    { echo "historay needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "historay needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) can't make a virtual environment: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' || \
	    $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
