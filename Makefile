PYTHON ?= python3
VENV := .venv/bin

.PHONY: run test bench
run: .venv/installed
	$(VENV)/python -m search.run --model squeezenet

test: .venv/installed
	$(VENV)/python -m pytest

bench: .venv/installed
	$(VENV)/python -m benchmarks

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/pip install -e '.[test]'
	touch $@
