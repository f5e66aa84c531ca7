"""Several shards in one process: the same results as one by one, nothing lost when a job dies or a shard is bad."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.tools import MEAN_COLOR, ROOT, clean_environment, make_image, make_shard, make_tar

from embedders.planning.shards import MIN_JOBS, group_shards

SLOW = """
import time
from mean_color import MeanColor

class Slow(MeanColor):
    batch_size = 1
    def load_embedding_model(self, device):
        forward = super().load_embedding_model(device)
        def wait(batch):
            time.sleep(0.15)
            return forward(batch)
        return wait
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data").mkdir()

    def start(**config):
        defaults = {
            "shards": "data/*.tar",
            "embedder": {"class": MEAN_COLOR},
            "device": "cpu",
            "gpu": 0,
            "threads": 1,
            "report": False,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(defaults | {"shards_per_job": 3} | config))
        command = ["snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--cores", "1"]
        return subprocess.Popen(
            [*command, "--workflow-profile", ROOT / "workflow/profiles/default"],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def finish(process) -> str:
    output, _ = process.communicate(timeout=300)
    return output


def find_results(folder: Path) -> dict[str, int]:
    """The inode of each output: another one means that the shard was embedded again."""
    return {path.stem: path.stat().st_ino for path in sorted((folder / "results/embeddings").glob("*.parquet"))}


def test_one_process_embeds_three_shards_and_each_result_is_as_by_itself(tmp_path, run):
    for number in range(4):
        make_shard(tmp_path / f"data/{number}.tar", 3 + number)
    process = run()
    output = finish(process)
    assert process.returncode == 0, output
    assert (tmp_path / "results/logs/embed/0.log").read_text().count("loaded MeanColor") == 1
    together = {name: pq.read_table(tmp_path / f"results/embeddings/{name}.parquet") for name in "0123"}
    assert [len(table) for table in together.values()] == [3, 4, 5, 6]
    process = run(shards_per_job=1, output_dir="alone")
    output = finish(process)
    assert process.returncode == 0, output
    for name, table in together.items():
        assert table.equals(pq.read_table(tmp_path / f"alone/embeddings/{name}.parquet"))


def test_a_bad_shard_does_not_fail_its_neighbours_and_a_changed_one_runs_alone(tmp_path, run):
    for number in range(3):
        make_shard(tmp_path / f"data/{number}.tar", 4)
    make_tar(tmp_path / "data/1.tar", {"a.jpg": b"no image"})
    process = run()
    output = finish(process)
    assert process.returncode != 0
    assert "ERROR failed: data/1.tar: 1 of 1 samples failed" in output
    (line,) = re.findall(r"^failed: .*", output, re.MULTILINE)
    assert line.startswith("failed: data/1.tar: 1 of 1 samples failed")
    assert line.endswith(" (log: results/logs/embed/0.log)")
    before = find_results(tmp_path)
    assert list(before) == ["0", "2"]  # what Snakemake removed with the failed job is back

    make_tar(tmp_path / "data/1.tar", {"a.jpg": make_image(1)})
    process = run()
    output = finish(process)
    assert process.returncode == 0, output
    after = find_results(tmp_path)
    assert (after["0"], after["2"]) == (before["0"], before["2"])
    assert "2 of 3 shards were finished by an earlier job" in (tmp_path / "results/logs/embed/0.log").read_text()

    make_shard(tmp_path / "data/2.tar", 5)
    process = run()
    output = finish(process)
    assert process.returncode == 0, output
    assert {name for name, inode in find_results(tmp_path).items() if inode != after[name]} == {"2"}
    assert len(os.listdir(tmp_path / "results/.finished")) == 6  # a pair for each shard, none of them stale


def test_an_output_that_somebody_removed_is_put_back_whichever_of_the_job_it_is(tmp_path, run):
    for number in range(3):
        make_shard(tmp_path / f"data/{number}.tar", 3)
    finish(run())
    before = find_results(tmp_path)
    assert len(before) == 3
    for removed in ("embeddings/2.parquet", "ledger/1.parquet"):
        (tmp_path / "results" / removed).unlink()
        process = run()
        output = finish(process)
        assert process.returncode == 0, output
        assert (tmp_path / "results" / removed).is_file(), output
        assert find_results(tmp_path) == before  # its second name, not made again


def test_a_killed_job_keeps_the_shards_that_it_had_finished(tmp_path, run):
    (tmp_path / "slow.py").write_text(SLOW)
    for number in range(3):
        make_shard(tmp_path / f"data/{number}.tar", 8)
    process = run(embedder={"class": "slow.py:Slow"})
    finished = tmp_path / "results/.finished"
    deadline = time.monotonic() + 60
    while not (finished.is_dir() and len(os.listdir(finished)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    kept = {path.name: path.stat().st_ino for path in finished.iterdir() if not path.name.startswith(".")}
    assert 2 <= len(kept) < 6

    subprocess.run(
        ["snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--unlock"],
        cwd=tmp_path, env=clean_environment(), check=True, capture_output=True,
    )  # fmt: skip
    process = run(embedder={"class": "slow.py:Slow"})
    output = finish(process)
    assert process.returncode == 0, output
    assert len(find_results(tmp_path)) == 3
    assert set(kept.values()) & set(find_results(tmp_path).values())  # linked, not made again
    assert all((finished / name).stat().st_ino == inode for name, inode in kept.items())


def test_shards_are_grouped_in_order_and_auto_leaves_enough_jobs(tmp_path):
    shards = {f"{number:04d}": str(tmp_path / f"{number}.tar") for number in range(200)}
    for path in shards.values():
        Path(path).write_bytes(b"x" * 10)
    assert group_shards(shards, 64)[0] == list(shards)[:64]
    assert [len(group) for group in group_shards(shards, 64)] == [64, 64, 64, 8]
    automatic = group_shards(shards, "auto")
    assert len(automatic) >= MIN_JOBS and [name for group in automatic for name in group] == list(shards)
    few = dict(list(shards.items())[:5])
    assert group_shards(few, "auto") == [[name] for name in few]
