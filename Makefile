PYTHON ?= python3
VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest
PURE := tests/unit tests/property

.PHONY: run test test-all bench
run: .venv/installed
	$(VENV)/python -m search.run --model squeezenet

# What starts Ray runs after the rest, by itself: a search has a process for each core.
test: .venv/installed
	$(PYTEST) --numprocesses 2 --dist worksteal $(PURE)
	$(PYTEST) $(PURE:%=--ignore %)

test-all: test
	$(PYTEST) -m slow

bench: .venv/installed
	$(VENV)/python -m benchmarks

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/pip install -e '.[test]'
	touch $@
