# The words a person needs. Each sets up what it lacks: .tools/ (uv, the SAM CLI) and .venv (everything else).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BIN := $(CURDIR)/.venv/bin
PYTHON := $(BIN)/python
UV := $(CURDIR)/.tools/bootstrap/bin/uv
SAM := $(CURDIR)/.tools/sam/bin/sam

# Where a real LiteLLM can be built and started from (setup.sh, start.sh, stop.sh); `contract` does without when it is not there.
export LITELLM_HARNESS ?= ../shared/litellm
# `make test TESTS=tests/unit` runs a part, without the coverage gate.
TESTS ?=
# `make dev ARGS="--port 9000"`
ARGS ?=
# `make preflight STAGE=dev`; `make deploy STAGE=dev`; `make plan STAGE=dev SINCE=v1.0`
STAGE ?=
SINCE ?=

# The LiteLLM of a person's shell must not slip into tests that start the stand-in.
ON_STAND_IN := env -u LITELLM_URL -u LITELLM_MASTER_KEY

.PHONY: help demo dev test check openapi contract faults bench build plan deploy preflight release lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready ## walk through a key's life on this machine, printing each request and answer
	@$(PYTHON) -m local.demo $(ARGS)

dev: .venv/ready ## keep the local stack up; prints its URL, a token and calls to copy
	@$(PYTHON) -m local.dev $(ARGS)

test: .venv/ready ## all tests, with the coverage gate
ifneq ($(TESTS),)
	@$(ON_STAND_IN) $(PYTHON) -m pytest $(TESTS)
else
	@$(PYTHON) -m coverage erase
	@$(ON_STAND_IN) $(PYTHON) -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup
	@$(PYTHON) -m coverage combine --quiet
	@$(PYTHON) -m coverage report
endif

check: .venv/ready .tools/checkov/ready ## formatter, linters, types, import contracts, template
	@echo "== ruff format";     $(BIN)/ruff format --quiet --check . || { echo "run: .venv/bin/ruff format"; exit 1; }
	@echo "== ruff check";      $(BIN)/ruff check --quiet .
	@echo "== pyright";         $(BIN)/basedpyright
	@echo "== import-linter";   PYTHONPATH=layers/shared $(BIN)/lint-imports --no-cache
	@echo "== openapi.yaml";    PYTHONPATH=layers/shared $(PYTHON) -m local.openapi --check
	@$(PYTHON) -m local.litemaas_template build/template-litemaas.yaml >/dev/null
	@$(PYTHON) -m tests.architecture.translation >build/translated.json
	@$(PYTHON) -m tests.architecture.translation litemaas >build/translated-litemaas.json
	@echo "== cfn-lint, as written";    $(BIN)/cfn-lint template.yaml build/template-litemaas.yaml stacks/*.yaml
	@echo "== cfn-lint, as translated"; $(BIN)/cfn-lint build/translated.json build/translated-litemaas.json
	@echo "== checkov";       BC_SKIP_MAPPING=TRUE .tools/checkov/bin/checkov --config-file .checkov.yaml \
	    --file build/translated.json build/translated-litemaas.json stacks/*.yaml

openapi: .venv/ready ## write openapi.yaml, and what GET /api/v1/openapi.json serves, from the code
	@PYTHONPATH=layers/shared $(PYTHON) -m local.openapi

contract: .venv/ready ## the LiteLLM contract suite, on the stand-in and on a real LiteLLM
	@echo "== the stand-in"
	@$(ON_STAND_IN) $(PYTHON) -m pytest tests/contract
	@echo "== a real LiteLLM"
	@.ci/with-litellm $(PYTHON) -m pytest tests/contract

faults: .venv/ready ## break everything at every step, then walk on while it breaks; on the stand-in and on a real LiteLLM
	@echo "== races"
	@$(ON_STAND_IN) $(PYTHON) -m pytest tests/faults/test_races.py tests/faults/test_unsafe_tokens.py tests/faults/test_invariants.py
	@echo "== the stand-in"
	@$(ON_STAND_IN) $(PYTHON) -m tests.faults.report $(ARGS)
	@echo "== a real LiteLLM"
	@.ci/with-litellm $(PYTHON) -m tests.faults.report --quick --operations 500 $(ARGS)

bench: .venv/ready .tools/lambda/ready ## what requests cost here: time, processor, round trips; cold starts, load, a million keys
	@$(ON_STAND_IN) $(PYTHON) -m bench $(ARGS)

build: .venv/ready .tools/sam/ready ## what goes to AWS, in .aws-sam/: build for template.yaml, litemaas for a drop-in
	@.ci/build

plan: .venv/ready ## what deploying STAGE would add and change, since the revision SINCE; asks nothing of AWS
	@$(PYTHON) -m local.plan $(STAGE) $(SINCE)

deploy: .venv/ready .tools/sam/ready ## build and deploy STAGE; asks for what samconfig.toml has only examples of
	@.ci/deploy $(STAGE)

lock: .tools/bootstrap/ready ## pin all requirements again; UPGRADE=--upgrade for newer versions
	@for file in layers/shared/requirements requirements/bootstrap requirements/dev requirements/lambda requirements/sam requirements/checkov requirements/release; do \
	    echo "$$file.txt"; \
	    $(UV) pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url \
	        $(UPGRADE) $$file.in --output-file $$file.txt; \
	done

preflight: .venv/ready ## what a deployment would miss, in plain words; STAGE=dev (or staging, prod, litemaas)
	@$(PYTHON) -m local.preflight $(STAGE)

release: .venv/ready .tools/release/ready ## bill of materials, licences and known vulnerabilities of a release, in build/release
	@$(PYTHON) -m local.supply_chain $(ARGS)

clean: ## remove everything make made
	@rm -rf .aws-sam .tools .venv build .coverage .coverage.* .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.tools/bootstrap/ready: requirements/bootstrap.txt
	@requirements/setup uv

.venv/ready: requirements/dev.txt | .tools/bootstrap/ready
	@requirements/setup environment .venv requirements/dev.txt

.tools/lambda/ready: requirements/lambda.txt | .tools/bootstrap/ready
	@requirements/setup environment .tools/lambda requirements/lambda.txt

.tools/checkov/ready: requirements/checkov.txt | .tools/bootstrap/ready
	@requirements/setup environment .tools/checkov requirements/checkov.txt

.tools/release/ready: requirements/release.txt | .tools/bootstrap/ready
	@requirements/setup environment .tools/release requirements/release.txt

.tools/sam/ready: requirements/sam.txt | .tools/bootstrap/ready
	@requirements/setup environment .tools/sam requirements/sam.txt
