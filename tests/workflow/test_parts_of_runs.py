"""Parts of one run, each by its own Snakemake in one folder: no shard is embedded twice, one summary at the end."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
from support.tools import wait_until
from support.workflow import edit, make_shard, read_results, run_snakemake, run_well, snakemake_command
from support.workflow import snakemake_environment as environment

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished, tmp_path):
    """A finished run of two shards, to which three are added that differ in size."""
    project = shutil.copytree(finished, tmp_path / "project")
    for number, name in enumerate("cde"):
        make_shard(project / f"data/{name}.tar", ["red"] * (number + 1))
    return project


def start(project, part, *options):
    (project / "hold").touch()
    with (project / f"printed-{part.replace('/', '-')}.txt").open("w") as printed:
        return subprocess.Popen(
            snakemake_command("--config", f"part={part}", *options), cwd=project, env=environment(),
            stdout=printed, stderr=printed, start_new_session=True,
        )  # fmt: skip


def find_partials(project):
    return {path.name.split(".")[1] for path in project.glob("results/embeddings/.*.partial")}


def find_embedded(printed):
    return set(re.findall(r"^ +output: results/embeddings/(\w+).parquet", printed, re.MULTILINE))


def test_parts_run_at_once_and_the_next_run_only_sums_up(project):
    expected = shutil.copytree(project, project.with_name("expected"))
    run_well(expected)
    edit(project / "config.yaml", "report: false", "report: false\nshards_per_job: 2")
    runs = [start(project, part) for part in ("1/2", "2/2")]
    wait_until(lambda: len(find_partials(project)) == 2)
    assert len(find_partials(project) & {"c", "e"}) == 1 and "d" in find_partials(project)

    refused = run_snakemake(project)
    assert refused.returncode != 0 and "part 1/2 of a run is using this folder" in refused.stdout

    (project / "hold").unlink()
    assert [run.wait(300) for run in runs] == [0, 0]
    printed = (project / "printed-1-2.txt").read_text()
    assert "part 1/2 is finished: 3 of 5 shards; once all parts have ended" in printed
    before = {path: path.stat().st_ino for path in (project / "results/embeddings").iterdir()}
    assert "rule embed" not in run_well(project)
    assert before == {path: path.stat().st_ino for path in (project / "results/embeddings").iterdir()}
    assert read_results(project) == read_results(expected)
    assert not (project / "results/record/parts").exists()
    assert "Nothing to be done" in run_well(project, "-n")


def test_a_part_that_was_killed_goes_on_and_no_part_makes_the_totals(project):
    run = start(project, "1/2")
    wait_until(lambda: find_partials(project))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(300)
    refused = run_snakemake(project, "results/summary.json", "--config", "part=1/2")
    assert refused.returncode != 0 and "leave `part` out, once all parts have ended" in refused.stdout
    (project / "hold").unlink()
    printed = run_well(project, "--config", "part=1/2")
    assert find_embedded(printed) == {"c", "e"}
    assert json.loads((project / "results/summary.json").read_text())["shards"] == 2
    printed = run_well(project)  # what the other part would have done
    assert find_embedded(printed) == {"d"}
    assert json.loads((project / "results/summary.json").read_text())["shards"] == 5
