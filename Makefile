# `make` alone lists what there is. Everything runs in .venv, made from the locked requirements.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all faults check format bench lock clean web

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

setup: ## Make .venv with everything needed to run (other targets do this by themselves)
	@$(PYTHON) scripts/setup.py run

run: setup ## Set up and run with live sample feeds on http://127.0.0.1:8600 (ARGS="--port 9000")
	@exec $(BIN)/cmis up --demo $(ARGS)

test: ## Set up and run the tests; needs nothing but Python (ARGS="-k dedup")
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: ## All tests, also the slow ones (ARGS="-k kill")
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/python -m pytest $(ARGS)

faults: ## Faults under load, the long form: what was lost or doubled (ARGS="--million", --short, --only WORDS, --write)
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/python -m tests.faults $(ARGS)

check: ## Format, lint, types, import rules, coverage page, OpenAPI; types and unit tests of the browser page
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports
	@$(BIN)/python scripts/coverage.py --check
	@$(BIN)/python scripts/openapi.py --check
	@$(BIN)/python scripts/web.py check

web: ## Serve the browser page while it is changed (CMIS_URL=http://127.0.0.1:8600 names the instance behind it)
	@$(PYTHON) scripts/setup.py dev
	@exec $(BIN)/python scripts/web.py dev

format: ## Format the code
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	@$(BIN)/python scripts/web.py format

bench: ## Measure against peers in the same run, as ratios (ARGS="--events 300000")
	@$(PYTHON) scripts/setup.py bench
	@$(BIN)/python -m bench.run $(ARGS)

lock: ## Renew requirements/*.txt from pyproject.toml
	@$(PYTHON) scripts/setup.py dev
	@$(BIN)/python scripts/lock.py

clean: ## Remove what was built (not cmis-data)
	rm -rf .venv .cache cmis_stream/page web/node_modules dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
