# Every target sets up what it needs in .venv; a second call finds it there and needs no network.
PYTHON ?= python3
BIN := .venv/bin

PEERS := .venv-peers/bin
TFDS_DATA_DIR ?= ../shared/tfds
TFIGKD_WEIGHTS_DIR ?= ../shared/weights

# TensorFlow frees no graph of a test, so each of three calls has new workers: two, of one thread each. Long files start
# first (tests/conftest.py).
FAST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"
UPPER := tests/compress tests/edge tests/store tests/training
LOWER := tests/models tests/attribution tests/losses tests/data tests/batches tests/config tests/runtime tests/measure

.PHONY: quickstart cifar10 test test-slow bench clean

quickstart: .venv/.installed ## install, then the main job on the embedded digits
	$(BIN)/python -m tfigkd.run --experiment quickstart

cifar10: .venv/.installed ## all of CIFAR-10 in one to two hours on 2 cores: teacher, maps, student, files, report
	$(BIN)/python -m tfigkd.run --experiment cifar10 $(addprefix --data.dir ,$(wildcard $(TFDS_DATA_DIR)))

test: export TF_NUM_INTRAOP_THREADS = 1
test: export OMP_NUM_THREADS = 1
test: .venv/.installed-test ## lint, types, import contracts, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports setup.cfg
	$(FAST) $(UPPER)
	$(FAST) $(LOWER)
	$(FAST) tests $(addprefix --ignore=,$(UPPER) $(LOWER))

test-slow: .venv/.installed-test ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

bench: .venv/.installed .venv-peers/.installed ## speed and memory against the peers: half an hour, nothing else running
	$(BIN)/python -m experiments.benchmarks --data-dir $(TFDS_DATA_DIR) --weights $(TFIGKD_WEIGHTS_DIR) \
		--peers $(PEERS)/python

clean:
	rm -rf .venv .venv-peers runs build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tfigkd needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.installed: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

.venv-peers/.installed: experiments/benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --requirement experiments/benchmarks/peers.txt
	touch $@
