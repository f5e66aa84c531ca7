"""Names in real runs: they stay when shards are added, all that a file system allows work, others are refused."""

import json
import shutil

import pytest
import yaml
from support.workflow import ROOT, edit, find_planned, make_shard, read_colors, run_snakemake, run_well

ODD = ["""it's "two" $HOME; words""", "[x]", "_y", "~t", "key=1/_q", "a,b", "a#b", "a?b", "a::b", "a*b", "ü\u3000x"]
ODD += ["100%", "a\\b", " lead", "trail ", "a&b|c>d", "`id`", ".z", "%20", "é" * 114]


def configure(project, **changes):
    config = yaml.safe_load((project / "config.yaml").read_text())
    (project / "config.yaml").write_text(json.dumps(config | changes))


def list_outputs(folder):
    return {str(path.relative_to(folder / "embeddings")) for path in folder.glob("embeddings/**/*.parquet")}


def test_a_pattern_or_a_key_more_embeds_nothing_again(project):
    before = {path: path.stat().st_mtime_ns for path in project.glob("results/embeddings/*")}
    make_shard(project / "more/c.tar", ["green"])
    make_shard(project / "more/a.tar", ["red"])
    configure(project, shards=["data/*.tar", "more/c.tar"])
    assert find_planned(project) == {"c"}
    configure(project, shards={".": "data/*.tar", "val": "more/*.tar"})
    run_well(project)
    assert list_outputs(project / "results") == {"a.parquet", "b.parquet", "val/a.parquet", "val/c.parquet"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((project / "results/summary.json").read_text())["shards"] == 4
    configure(project, shards=["data/*.tar", "more/*.tar"])
    refused = run_snakemake(project, "-n").stdout
    assert (
        "would both be named 'a'; use a mapping, whose keys become folders ('.' for none), for example shards: {."
        in refused
    )


def test_every_name_that_a_file_system_allows_is_embedded(project, tmp_path, monkeypatch):
    """Names of shards, of the output folder, of the working folder and of the clone, in one run."""
    shutil.rmtree(project / "results")
    project = project.rename(tmp_path / """work [it's] "x" $HOME & ü""")
    monkeypatch.setenv("HOME", str(tmp_path))
    clone = tmp_path / """clone it's "x" $HOME & ü"""
    clone.mkdir()
    for name in ("workflow", "embedders", "envs"):
        (clone / name).symlink_to(ROOT / name)
    (clone / "profiles").symlink_to("workflow/profiles")
    shutil.copy(ROOT / "Snakefile", clone)
    for name in ODD:
        make_shard(project / f"odd/{name}.tar", ["blue"])
    make_shard(project / "-rf.tar", ["blue"])
    (project / "odd list.txt").write_bytes(b"\xef\xbb\xbf# all\r\nodd/**/*.tar\r\n./odd/.z.tar\r\n-rf.tar\r\n")
    configure(project, shards="odd list.txt", output_dir="~/it's [out] `x`", shards_per_job=64)
    run_well(project, "--snakefile", clone / "Snakefile")
    folder = tmp_path / "it's [out] `x`"
    assert not (project / "~").exists()
    assert len(list_outputs(folder)) == len(ODD) + 1
    assert {"key%3D1/%5Fq.parquet", "%5Fy.parquet", "%2Ez.parquet", f"{ODD[0]}.parquet"} <= list_outputs(folder)
    assert all(read_colors(path) == [[0, 0, 1]] for path in folder.glob("embeddings/**/*.parquet"))
    configure(project, shards_per_job=1)
    run_well(project, "-n", "--forceall", "--snakefile", clone / "Snakefile")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--config", "shards=data/a.tar", "shards=data/b.tar"],
            "--config: 'shards' is given twice; expected once; quote the value",
        ),
        (["--configfile", "config.yaml", "other.yaml"], "--configfile: 2 files are given"),
        (["--config", "output_dir=README.md/x"], "README.md' is not a folder; move it away, or name another folder"),
        (["--config", "shards=odd/*.tar"], "'odd/{x}.tar' has a brace, which Snakemake reads as a wildcard"),
        (["--snakefile", "clone {x}/Snakefile"], "has a brace, which Snakemake reads as a wildcard; move or rename"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(project, options, line):
    shutil.copy(project / "config.yaml", project / "other.yaml")
    make_shard(project / "odd/{x}.tar")
    (project / "clone {x}").mkdir()
    for name in ("workflow", "embedders", "envs"):
        (project / "clone {x}" / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Snakefile", project / "clone {x}")
    done = run_snakemake(project, "-n", "--cores", "1", *options)
    assert done.returncode != 0
    assert line in done.stdout
    assert "Traceback" not in done.stdout


def test_a_value_of_the_command_line_is_taken_as_it_is_and_in_place_of_the_whole_key(project):
    edit(project / "config.yaml", '"data/*.tar"', '{train: "data/a.tar", rest: "data/b.tar"}')
    run_well(project, "--config", "output_dir=2024_01", "shards={train: data/b.tar}")
    assert list_outputs(project / "2024_01") == {"train/b.parquet"}
    kept = yaml.safe_load((project / "2024_01/run_config.yaml").read_text())
    assert (kept["output_dir"], kept["shards"]) == ("2024_01", {"train": "data/b.tar"})
    assert not (project / "202401").exists()
