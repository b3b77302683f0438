# Prepares .venv and calls the sessions of noxfile.py in it. PYTHON is the interpreter that makes .venv.
PYTHON ?= python3
NOX := .venv/bin/nox
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types protos stubs tests wheel bench clean

help: ## list the targets
	@sed -n 's/^\([a-z ]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 40

setup: $(STAMP) ## make .venv with the project and its tools

demo: $(STAMP) ## run the quick suite and say where the report is
	@$(NOX) -s demo -- $(ARGS)

test: $(STAMP) ## all checks: lint, types, protos, and the tests on the built wheel
	@$(NOX)

lint types protos tests wheel bench: $(STAMP) ## one session of noxfile.py; ARGS="..." goes to pytest
	@$(NOX) -s $@ -- $(ARGS)

stubs: $(STAMP) ## renew the Python stubs after a change of the contract
	@$(NOX) -s protos -- --write

clean: ## remove what can be made again, except .venv and runs
	rm -rf build dist *.egg-info .nox .mypy_cache .ruff_cache .pytest_cache

# pip writes its script last, so a .venv that was interrupted is made again.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make environments; install Debian's package python3-venv"; exit 1; }
	@$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml | .venv/bin/pip
	@echo "installing the project and its tools into .venv (several GB the first time)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" --editable '.[dev]'
	@touch $@
