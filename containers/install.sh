#!/bin/sh
# Installs the content of the image, for tarquet.def and the Dockerfile: Python, and Tarquet with the packages that its jobs
# need, in the versions of requirements.txt. Snakemake is not installed, because it runs outside and starts the containers.
#
# usage: install.sh SOURCE    a folder with requirements.txt, pyproject.toml, README.md and embedders/
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv >/dev/null
apt-get clean
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/tarquet
# As constraints, because jobs need only some of these packages; constraints also apply to setuptools, which pip downloads.
export PIP_CONSTRAINT="$1/requirements.txt"
# Editable: the code stays in SOURCE, where the Dockerfile can copy it last, into a separate layer. Compat mode adds only a
# path: an import hook would give way to the hook of another Tarquet in the packages of APPTAINERENV_PYTHONPATH.
/opt/tarquet/bin/pip install --no-cache-dir --disable-pip-version-check --config-settings editable_mode=compat \
    --editable "$1[near-copies,storage]"
