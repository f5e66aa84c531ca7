# make run    set up, then embed demo photographs and show their nearest neighbours
# make test   set up, then run the tests
# make test-long   the long suites, an hour or so: cuts, flips, kills
# make test-cluster   on a real SLURM and in a real Apptainer, which are brought up for it; for root on Debian, which gets the packages
# make image  the image for jobs, tarquet.sif, which embeds a picture at its end; wants Apptainer
# make lint   set up, then check style and the workflow
# make setup  the local environment .venv, from the versions pinned in requirements.txt
# make clean  remove the environment, the demo's data and results, and caches; never other data or results

PYTHON ?= python3
READY := .venv/.ready
DEMO := data/demo/.ready

# Jobs start `python -m embedders`: that python must be this one.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup run test test-long test-cluster image lint clean
.DELETE_ON_ERROR:

setup: $(READY)

# A stamp and not the folder: an installation that was broken off must be done again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	python -m pip install --disable-pip-version-check -r requirements.txt
	python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEMO): $(READY) examples/demo/make_shards.py
	python examples/demo/make_shards.py data/demo
	@touch $@

run: $(DEMO)
	snakemake --configfile examples/demo/config.yaml --quiet rules host
	python examples/demo/show_neighbours.py results/demo

# A file of tests stays on one core: its slow fixtures are shared.
test: $(READY)
	python -m pytest -n auto --dist loadfile

test-long: $(READY)
	python -m pytest -m long -s

test-cluster: $(READY)
	python -m pytest -m cluster -rs tests/cluster

image: tarquet.sif

tarquet.sif: containers/tarquet.def containers/install.sh requirements.txt pyproject.toml $(shell find embedders -name '*.py' -o -name '*.jinja')
	apptainer build --force $@ containers/tarquet.def

# The demo's shards, because a workflow without shards cannot be checked.
lint: $(DEMO)
	ruff check .
	ruff format --check .
	snakefmt --check .
	snakemake --lint --configfile examples/demo/config.yaml

clean:
	rm -rf .venv data/demo results/demo build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
