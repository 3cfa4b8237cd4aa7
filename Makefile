# The same handful of commands here and in CI. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3.11
PYTHONS ?= python3.12 python3.13
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test lint types unit docs check-docs coverage base web-runtime optimum older-onnxruntime clean

help:
	@echo "make demo    build a desktop bundle of the built-in student and draw out/demo.png"
	@echo "make test    lint, types and tests"
	@echo "make docs    rewrite the generated pages: docs/cli.md and the table of sizes"
	@echo "make check-docs run every command of README.md and docs/ as it is written (about half an hour)"
	@echo "make web-runtime fetch what browser bundles draw with, for their tests (needs npm)"
	@echo "make coverage run the tests again and fail where they reach less of the code than they did"
	@echo "make base    install the base package under other Pythons (PYTHONS=...) and draw with it, without torch"
	@echo "make optimum load an optimum-layout bundle in optimum-onnx, in an environment of its own"
	@echo "make older-onnxruntime draw with the oldest onnxruntime that each kind of bundle asks for, and not with the one before"
	@echo "make clean   remove the environment and what the commands wrote"

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or make PYTHON=/path/to/python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

setup: $(STAMP)

demo: setup
	$(BIN)/python -m deploy.cli.demo --out out

test: lint types unit

lint: setup
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: setup
	$(BIN)/mypy

unit: setup web-runtime
	$(BIN)/pytest --numprocesses 2

# A step of its own: measuring lines makes tests slower.
coverage: setup web-runtime
	$(BIN)/pytest --numprocesses 2 --cov --cov-report= --no-cov-on-fail
	$(BIN)/coverage report --skip-covered --sort=cover

base: setup
	PYTHONS="$(PYTHONS)" tests/base/check.sh

docs: setup
	$(BIN)/python -m deploy.cli.reference
	$(BIN)/python -m tests.docs.sizes

check-docs: setup
	$(BIN)/python -m tests.docs_commands

# Without npm, or where it reaches no registry, the tests of the page are skipped.
web-runtime: .web-runtime

.web-runtime: deploy/page/npm/package-lock.json | $(STAMP)
	@rm -rf $@
	@$(BIN)/flash-deploy web-runtime -o $@ || echo "the tests of the page will be skipped"

# optimum-onnx 0.1.0 cannot be installed beside transformers 5, so its check has an environment of its own.
optimum: setup
	BIN=$(BIN) PYTHON=$(PYTHON) tests/optimum/check.sh

# Each release of onnxruntime has an environment of its own.
older-onnxruntime: setup
	BIN=$(BIN) PYTHON=$(PYTHON) tests/onnxruntime/check.sh

clean:
	rm -rf $(VENV) .venv-base .venv-optimum .venv-onnxruntime .web-runtime .traces out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
