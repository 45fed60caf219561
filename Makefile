# Every target sets up what it needs in .venv; a second call finds it there and needs no network.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow clean

quickstart: .venv/.installed ## install, then the main job on the embedded digits
	$(BIN)/python -m tfigkd.run --experiment quickstart

test: .venv/.installed-test ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.installed-test ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv runs build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tfigkd needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.installed: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@
