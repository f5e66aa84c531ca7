"""The workflow as a module of another Snakefile, in another folder: a real run, and what it must not lack."""

import json

import pyarrow.parquet as pq
import pytest
from test_workflow import CONFIG, EMBEDDER, ROOT, make_shard, snakemake_environment
from tools import run_python

SNAKEFILE = f"""
configfile: "images.yaml"

module tarquet:
    snakefile: "{ROOT}/Snakefile"
    config: config["embeddings"]

use rule * from tarquet as tarquet_*

onstart:
    tarquet.onstart()

onerror:
    tarquet.onerror()

rule count:
    default_target: True
    input:
        rules.tarquet_all.input,
    output:
        "count.txt",
    shell:
        "echo {{input}} > {{output}}"
"""


@pytest.fixture
def project(tmp_path):
    make_shard(tmp_path / "data/a.tar")
    make_shard(tmp_path / "data/b.tar", ["blue"] * 4)
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    (tmp_path / "beside.py").write_text("SCALE = 1\n")
    (tmp_path / "weights.bin").write_bytes(b"some weights")
    indented = CONFIG.replace("\n", "\n  ")
    (tmp_path / "images.yaml").write_text(f"embeddings:\n  {indented}\n")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def run(project, *options):
    return run_python("-m", "snakemake", "--cores", "2", *options, cwd=project, env=snakemake_environment())


def test_the_workflow_runs_as_a_module_of_another_one(project):
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "count.txt").read_text() == "results/summary.json\n"
    assert json.loads((project / "results/summary.json").read_text())["embedded"] == 7
    assert len(pq.read_table(project / "results/embeddings")) == 7
    assert (project / "results/run_config.yaml").exists()
    assert "Nothing to be done" in run(project, "-n", "--rerun-triggers", "mtime", "params", "input", "code").stdout


def test_without_its_onstart_the_module_says_what_to_add(project):
    text = (project / "Snakefile").read_text()
    (project / "Snakefile").write_text(text.replace("    tarquet.onstart()", "    pass"))
    done = run(project)
    assert done.returncode != 0
    assert "add `onstart: tarquet.onstart()`" in done.stdout + done.stderr
