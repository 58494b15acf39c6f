# Every target sets itself up: a virtual environment in .venv with uv inside it and locked dependencies.
.PHONY: serve test check bench lock clean
PYTHON ?= python3
BIN := .venv/bin

serve: .venv/ready
	$(BIN)/llm-orchestration serve

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -q -m "not live"

test: .venv/ready
	$(BIN)/pytest

bench: .venv/ready
	$(BIN)/python -m benchmarks

# Re-resolve the pinned dependencies (needs the package index).
lock: .venv/bin/uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --all-extras --group dev --upgrade -o requirements.lock -q

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv==0.13.9"

.venv/ready: requirements.lock pyproject.toml .venv/bin/uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .orchestration build dist
