# Everything a developer or a newcomer types. Needs Python 3.10 to 3.13, make and git; makes its own .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
EXTRA ?= dev
READY := $(VENV)/.ready-$(EXTRA)

BROWSER ?= chromium chromium-driver
DATABASE ?= postgresql
POSTGRES_BIN ?= /usr/lib/postgresql/*/bin/initdb
POOLER ?= pgbouncer
POOLER_BIN ?= /usr/sbin/pgbouncer
WAITS ?= 0 10 30

.PHONY: help demo test quick again lint types format bench simulate mutants soak fuzz oldest sdks adapters system clean
.DEFAULT_GOAL := help

help: ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 was found; say which: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/.ready-demo ## From LLM calls to both invoice previews, offline, in under a minute
	$(BIN)/llm-metering demo

JOBS ?= 2
test: $(READY) ## All tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

WHICH ?= not slow
quick: $(READY) ## The tests that take no time
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m "$(WHICH)"

again: $(READY) ## Those that failed last, one after another
	$(BIN)/python -m pytest -n 0 --last-failed --last-failed-no-failures none

lint: $(READY) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Our figures beside their references, as ratios
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

SEEDS ?= 100000
START ?= 0
simulate: $(READY) ## Random lives on a virtual clock: make simulate SEEDS=100000 START=0
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(START)

mutants: $(READY) ## Take each protection out of a copy, and prove that a test turns red
	$(BIN)/python tools/mutants.py

MINUTES ?= 10
FLEET ?=
soak: $(READY) ## Minutes of kills and failures, and then the audit: make soak MINUTES=10 [FLEET=yes]
	$(BIN)/python tools/soak.py --minutes $(MINUTES) $(if $(FLEET),--fleet)

fuzz: $(READY) ## Minutes of hostile bytes and values for every reader: make fuzz MINUTES=10
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

OLDEST ?= 'starlette==0.40.*' 'fastapi==0.115.*' 'anyio==4.4.*'
oldest: ## The middleware's tests under the oldest FastAPI and Starlette, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[compression]' $(OLDEST) \
	  asgiref httpx hypothesis openai pytest pytest-timeout requests trio uvicorn websockets wsproto zstandard
	.venv-oldest/bin/python -m pytest -q tests/capture/server

OLDEST_SDKS ?= 'openai==1.50.*' 'anthropic==0.40.*' 'httpx==0.27.*'  # later ones of httpx are not known to these
sdks: ## The tests of wrapped clients with the oldest SDKs of OpenAI and Anthropic, in .venv-oldest-sdks
	$(PYTHON) -m venv .venv-oldest-sdks
	.venv-oldest-sdks/bin/python -m pip install --quiet --disable-pip-version-check --editable . $(OLDEST_SDKS) \
	  httpx2 hypothesis pytest pytest-timeout requests trio uvicorn
	.venv-oldest-sdks/bin/python -m pytest -q tests/capture/test_*.py tests/providers

# Each in an environment of its own: they want different SDKs beneath. The extras' bounds in pyproject.toml say the same.
OLDEST_LANGCHAIN ?= 'langchain-core==1.0.*'
OLDEST_LITELLM ?= 'litellm==1.80.*'
OLDEST_AGENTS ?= 'openai-agents==0.6.0' 'openai==2.9.*'  # later ones of openai want fields that it does not fill
OLDEST_PYDANTIC ?= 'pydantic-ai-slim[openai]==2.20.*'
OLDEST_OTEL ?= 'opentelemetry-sdk==1.27.*'
adapters: ## The adapters' tests with the oldest packages that they work with, in .venv-oldest-*
	@try() { name=$$1; shift; \
	  $(PYTHON) -m venv .venv-oldest-$$name && \
	  .venv-oldest-$$name/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' \
	    httpx pytest pytest-timeout trio "$$@" && \
	  .venv-oldest-$$name/bin/python -m pytest -q -W ignore tests/adapters/test_$$name.py; }; \
	try langchain $(OLDEST_LANGCHAIN) && try litellm $(OLDEST_LITELLM) && \
	try openai_agents $(OLDEST_AGENTS) && try pydantic_ai $(OLDEST_PYDANTIC) && try opentelemetry $(OLDEST_OTEL)

system: ## Install the browser, PostgreSQL and PgBouncer for tests, where they are missing (Debian, as root or with sudo)
	@look() { missing=; \
	  command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing="$(BROWSER)"; \
	  command -v initdb >/dev/null || ls $(POSTGRES_BIN) >/dev/null 2>&1 || missing="$$missing $(DATABASE)"; \
	  command -v pgbouncer >/dev/null || ls $(POOLER_BIN) >/dev/null 2>&1 || missing="$$missing $(POOLER)"; \
	  [ -z "$$missing" ]; }; \
	if look; then echo "Chromium, PostgreSQL and PgBouncer are there"; exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "Not a Debian: install $$missing"; exit 1; fi; \
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	apt="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120"; \
	for wait in $(WAITS); do \
	  sleep $$wait; \
	  if $$apt update && $$apt install -y --no-install-recommends $$missing && look; then exit 0; fi; \
	  look || echo "Still missing: $$missing"; \
	done; \
	echo "Could not be installed: $$missing"; exit 1

clean: ## Remove what was made here
	rm -rf $(VENV) .venv-oldest* .pytest_cache .mypy_cache .ruff_cache dist build
