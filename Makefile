# `make demo` and `make test` set up everything they need, on a fresh machine too.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
ROOT ?= demo-run
PYTEST := NUMBA_CACHE_DIR=$(CURDIR)/.numba_cache OMP_NUM_THREADS=1 $(BIN)/python -m pytest
.PHONY: demo test test-cluster check bench-env setup setup-test clean

demo: setup          ## the whole path on text this machine has; ends with a report
	$(BIN)/triplane demo --root $(ROOT)

test: setup-test     ## unit, property, golden and Spark tests: <= 15 minutes on 2 cores
	$(PYTEST) tests --ignore tests/cluster --numprocesses 2 --dist loadfile --quiet

test-cluster: setup-test  ## real Ray and Spark processes, killed for real; the whole demo on S3: <= 25 minutes
	$(PYTEST) tests/cluster --quiet

check: setup-test    ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-env: setup-test ## the peers that bench/ compares with
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,test,bench]'
	$(PYTHON) -m venv .bench/datatrove
	.bench/datatrove/bin/python -m pip install --quiet --disable-pip-version-check 'datatrove[io,processing]==0.10.1' spacy==3.8.18 'xxhash<4' 'filelock<4' 'pandas<3'
	$(PYTHON) -m venv .bench/dolma
	.bench/dolma/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: dolma==1.2.1
	$(PYTHON) -m venv .bench/olmo_core
	.bench/olmo_core/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ai2-olmo-core==3.0.0 torch transformers accelerate
	$(PYTHON) -m venv .bench/lm_eval
	.bench/lm_eval/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 lm-eval==0.4.13 transformers==5.23.0 accelerate

setup:
	@infra/setup.sh $(VENV) all

setup-test:
	@infra/setup.sh $(VENV) all,test

clean:               ## removes what the targets above made
	rm -rf $(VENV) .bench .numba_cache .pytest_cache .mypy_cache .ruff_cache demo-run
