"""The workflow as a module of another Snakefile, in another folder: a real run, and what it must not lack."""

import json
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
from support.tools import run_cli, run_python
from support.workflow import CONFIG, EMBEDDER, ROOT, make_shard, snakemake_environment

SNAKEFILE = """
configfile: "images.yaml"

module tarquet:
    snakefile: SOURCE
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
        "echo {input} > {output}"
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
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("SOURCE", f'"{ROOT}/Snakefile"'))
    return tmp_path


@pytest.fixture
def hosted(project, monkeypatch):
    """The same by the address of a repository, which git is told to find in a folder instead."""
    repository = project / "repository"
    for name in ("workflow", "envs"):
        shutil.copytree(ROOT / name, repository / name)
    shutil.copy(ROOT / "Snakefile", repository)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-qb", "main"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *arguments], cwd=repository, check=True)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{repository}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/owner/tarquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    address = 'github("owner/tarquet", path="Snakefile", branch="main")'
    (project / "Snakefile").write_text(SNAKEFILE.replace("SOURCE", address))
    return project


def run(project, *options):
    return run_python("-m", "snakemake", "--cores", "2", *options, cwd=project, env=snakemake_environment())


@pytest.mark.parametrize("source", ["project", "hosted"])
def test_the_workflow_runs_as_a_module_of_another_one(source, request):
    project = request.getfixturevalue(source)
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "count.txt").read_text() == "results/summary.json\n"
    assert json.loads((project / "results/summary.json").read_text())["embedded"] == 7
    assert len(pq.read_table(project / "results/embeddings")) == 7
    assert (project / "results/run_config.yaml").exists()
    assert "Nothing to be done" in run(project, "-n", "--rerun-triggers", "mtime").stdout


def test_without_its_onstart_the_module_says_what_to_add(tmp_path):
    job = run_cli("summarize", tmp_path / "run_shards.json", tmp_path / "summary.json")
    assert job.returncode == 1
    assert "add `onstart: tarquet.onstart()` there" in job.stderr
