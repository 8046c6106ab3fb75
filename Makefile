# `make demo` and `make test` are all a newcomer needs: both set the project up first.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
INSTALL = $(PY) tools/install.py --require-hashes
ARGS   ?=

.PHONY: demo test services processors schedules exhaustive e2e check bench lock clean

demo: $(VENV)/.runtime
	$(PY) -m scoring demo $(ARGS)

test: $(VENV)/.dev
	$(PY) -m pytest -n auto --dist worksteal $(ARGS)

# Installs what some tests need and pip cannot install: PostgreSQL, PgBouncer, unixODBC and Azurite.
services: $(VENV)/.dev
	@$(PY) -m tools.services

# The test that scores do not depend on neighbours, with the code for other processors too.
processors: $(VENV)/.dev
	$(PY) -m tests.processors

# Runs whose steps interleave with each other, statement by statement; PostgreSQL must be there.
schedules: $(VENV)/.dev
	$(PY) -m tests.interleaving $(ARGS)

# What takes long: a failure at every single point, where `make test` takes a sample, and `make e2e`.
exhaustive: $(VENV)/.dev
	$(PY) -m pytest -n auto --dist worksteal -m exhaustive --timeout=900 $(ARGS)

# The function app on real parts; PostgreSQL and Azurite must be there (`make services`).
e2e: $(VENV)/.dev
	@$(PY) -m tools.services missing
	$(PY) -m pytest tests/e2e/test_real_parts.py -m exhaustive $(ARGS)

check: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.bench
	for script in benchmarks/[a-z]*.py; do echo "== $$script"; PYTHONPATH=. $(PY) $$script || exit 1; done

# The pinned versions of everything, for every supported Python.
lock:
	uv pip compile --universal --python-version 3.11 --quiet --generate-hashes --upgrade \
	    --custom-compile-command "make lock" pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --quiet --generate-hashes --upgrade --group dev \
	    -c requirements.txt --custom-compile-command "make lock" pyproject.toml -o requirements-dev.txt
	uv pip compile --universal --python-version 3.11 --quiet --generate-hashes --upgrade \
	    --group pyproject.toml:bench -c requirements-dev.txt --custom-compile-command "make lock" -o requirements-bench.txt
	uv pip compile --python-version 3.11 --python-platform linux --quiet --generate-hashes --upgrade \
	    --custom-compile-command "make lock" \
	    scoring/job/environment/requirements.in -o scoring/job/environment/requirements.txt

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(INSTALL) -r requirements.txt
	@touch $@

# Microsoft's Functions worker, for tests: it asks for Python 3.13, and runs on 3.11 as well.
$(VENV)/.dev: requirements-dev.txt tests/worker/requirements.txt $(VENV)/.runtime
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL) --no-deps --ignore-requires-python -r tests/worker/requirements.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	$(INSTALL) -r requirements-bench.txt
	@touch $@
