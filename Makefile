# Every target sets itself up: a virtual environment in .venv with uv inside it and locked dependencies.
.PHONY: serve test check bench lock clean
PYTHON ?= python3
# Tests run side by side: most of their time goes by while a proxy starts or something is waited for.
WORKERS ?= 2
BIN := .venv/bin
# Without bytecode each of the many processes below compiles LiteLLM and every test anew.
unexport PYTHONDONTWRITEBYTECODE

serve: .venv/ready
	$(BIN)/llm-orchestration serve

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest tests/unit -q -m "not live and not slow" -n $(WORKERS)

test: .venv/ready
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 40

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
