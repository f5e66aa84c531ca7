# make run    set up, then embed demo photographs and show their nearest neighbours
# make test   set up, then run the tests
# make test-fast   those that need no Snakemake, no browser and no crowd of processes: a minute
# make test-long   the long suites, an hour or so: cuts, flips, kills
# make test-cluster   on a real SLURM and in a real Apptainer, which are brought up for it; for root on Debian, which gets the packages
# make image  the image for jobs, tarquet.sif, which embeds a picture at its end; wants Apptainer
# make lint   set up, then check style, types and the workflow
# make setup  the local environment .venv, from the versions pinned in requirements.txt; tests install more, from requirements-dev.txt
# make clean  remove the environment, the demo's data and results, and caches; never other data or results

PYTHON ?= python3
READY := .venv/.ready
TESTS_READY := .venv/.ready-for-tests
DEMO := data/demo/.ready

# Jobs start `python -m embedders`: that python must be this one.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# pip writes a thousand lines; these are the few of large files, so that a slow download is seen to go on.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
INSTALL := python -m pip install --disable-pip-version-check --progress-bar off
LARGE := sed -nuE '/(Downloading|Using cached) .*\([0-9]{3,}.* MB\)/p'

.PHONY: setup run test test-fast test-long test-cluster image lint clean
.DELETE_ON_ERROR:

setup: $(READY)

# A stamp and not the folder: an installation that was broken off must be done again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@echo "Installing requirements.txt into .venv: 3 GB to download, most of it PyTorch with CUDA. The large files:"
	@$(INSTALL) -r requirements.txt | $(LARGE)
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@

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

# A file of tests stays on one core: its slow fixtures are shared.
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

# The demo's shards, because a workflow without shards cannot be checked.
lint: $(TESTS_READY) $(DEMO)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check .
	snakemake --lint --configfile examples/demo/config.yaml

clean:
	rm -rf .venv data/demo results/demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
