# make run    set up, then embed demo photographs and show their nearest neighbours
# make test   set up, then run the tests
# make test-fast   run the tests without Snakemake, a browser or many processes: a minute
# make test-long   run the long suites (cuts, flips, kills): about an hour
# make test-cluster   run the tests on a real SLURM and in a real Apptainer, which it installs and starts; needs root on Debian
# make image  build the image for jobs, tarquet.sif, and embed a picture in it as a test; needs Apptainer
# make lint   set up, then check style, types and the workflow
# make setup  make the environment .venv from the versions pinned in requirements.txt; tests also install requirements-dev.txt
# make clean  remove the environment, the demo's data and results, and caches; never other data or results

PYTHON ?= python3
READY := .venv/.ready
TESTS_READY := .venv/.ready-for-tests
DEMO := data/demo/.ready

# Jobs run `python -m embedders`, which must be the Python of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# pip prints a thousand lines; show only those of large files, so that a slow download shows progress.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
INSTALL := python -m pip install --disable-pip-version-check --progress-bar off
LARGE := sed -nuE '/(Downloading|Using cached) .*\([0-9]{3,}.* MB\)/p'

.PHONY: setup run test test-fast test-long test-cluster image lint clean
.DELETE_ON_ERROR:

setup: $(READY)

# The target is a stamp and not the folder, so that an interrupted installation is repeated.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@echo "Installing requirements.txt into .venv: 3 GB to download, most of it PyTorch with CUDA. The large files:"
	@$(INSTALL) -r requirements.txt | $(LARGE)
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@
	@echo "The environment is ready. Activate it: . .venv/bin/activate"

$(TESTS_READY): $(READY) requirements-dev.txt
	@echo "Installing requirements-dev.txt: what tests need beyond a run. The large files:"
	@$(INSTALL) -r requirements-dev.txt | $(LARGE)
	@touch $@

$(DEMO): $(READY) examples/demo/make_shards.py
	python examples/demo/make_shards.py data/demo
	@touch $@

run: $(DEMO)
	snakemake --configfile examples/demo/config.yaml --quiet rules host
	python examples/demo/show_neighbours.py results/demo

# All tests of a file run on one core, because they share slow fixtures.
test: $(TESTS_READY)
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: $(TESTS_READY)
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not slow and not long and not cluster'

test-long: $(TESTS_READY)
	python -m pytest -m long -s

test-cluster: $(TESTS_READY)
	python -m pytest -m cluster -rs tests/cluster

image: tarquet.sif

tarquet.sif: containers/tarquet.def containers/install.sh requirements.txt pyproject.toml $(shell find embedders -name '*.py' -o -name '*.jinja')
	apptainer build --force $@ containers/tarquet.def

# Needs the demo's shards, because a workflow without shards cannot be checked.
lint: $(TESTS_READY) $(DEMO)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check .
	snakemake --lint --configfile examples/demo/config.yaml

clean:
	rm -rf .venv data/demo results/demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
