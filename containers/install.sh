#!/bin/sh
# Fills the image, for tarquet.def and the Dockerfile alike: Python, and Tarquet with what its jobs need, in the versions of
# requirements.txt. Snakemake is not in it, because it runs outside and starts the containers.
#
# usage: install.sh SOURCE    a folder with requirements.txt, pyproject.toml, README.md and embedders/
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv >/dev/null
apt-get clean
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/tarquet
# As constraints, because jobs need only some of these; so they hold for setuptools too, which pip would fetch anew.
export PIP_CONSTRAINT="$1/requirements.txt"
# Editable: the code stays in SOURCE, where a Dockerfile can copy it last, into a layer of its own. By a path alone (compat):
# a module that finds it would give way to that of another Tarquet among the packages of APPTAINERENV_PYTHONPATH.
/opt/tarquet/bin/pip install --no-cache-dir --disable-pip-version-check --config-settings editable_mode=compat \
    --editable "$1[near-copies]"
