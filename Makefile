# `make demo` and `make test` need nothing but Python 3.10+ and a package registry.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint clean

demo: .venv/ready  ## train, measure and predict on synthetic people, under 10 minutes on 2 cores
	$(BIN)/lowpose demo --out demo

test: .venv/ready  ## the tests; those on the shared photographs run where LOWPOSE_SHARED_DATA or ../shared/data has them
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
# --no-compile: what is imported is compiled then, a small part
	$(BIN)/python -m pip install --quiet --no-compile -e '.[train,export,dev]'
	touch $@

clean:
	rm -rf .venv demo .cache
