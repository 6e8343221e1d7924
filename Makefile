PYTHON ?= python3
VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest --numprocesses 2

.PHONY: run test test-all bench
run: .venv/installed
	$(VENV)/python -m search.run --model squeezenet

test: .venv/installed
	$(PYTEST)

test-all: test
	$(PYTEST) -m slow

bench: .venv/installed
	$(VENV)/python -m benchmarks

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/pip install -e '.[test]'
	touch $@
