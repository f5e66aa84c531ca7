"""Several shards in one process: the same results as one by one, nothing lost when a job dies or a shard is bad."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.tools import MEAN_COLOR, ROOT, clean_environment, make_image, make_shard, make_tar, run_cli, wait_until
from support.workflow import snakemake_command

from embedders.planning.shards import MIN_JOBS, group_shards

HELD = """
import time
from pathlib import Path
from mean_color import MeanColor

class Held(MeanColor):
    def load_embedding_model(self, device):
        forward = super().load_embedding_model(device)
        def wait(batch):
            while Path("hold").exists() and list(Path("results/record/new").glob("[!.]*")):
                time.sleep(0.02)
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
        command = [*snakemake_command(), "--directory", tmp_path, "--cores", "1"]
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
    output, _ = process.communicate(timeout=900)
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
    assert (tmp_path / "results/logs/embed/0+2.log").read_text().count("loaded MeanColor") == 1
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
    assert "failed shard: data/1.tar: 1 of 1 samples failed" in output
    (line,) = re.findall(r"^failed: .*", output, re.MULTILINE)
    assert line.startswith("failed: data/1.tar: 1 of 1 samples failed")
    assert line.endswith(" (log: results/logs/embed/0+2.log)")
    before = find_results(tmp_path)
    assert list(before) == ["0", "2"]

    make_tar(tmp_path / "data/1.tar", {"a.jpg": make_image(1)})
    process = run()
    output = finish(process)
    assert process.returncode == 0, output
    after = find_results(tmp_path)
    assert (after["0"], after["2"]) == (before["0"], before["2"])

    make_shard(tmp_path / "data/2.tar", 5)
    process = run()
    output = finish(process)
    assert process.returncode == 0, output
    assert {name for name, inode in find_results(tmp_path).items() if inode != after[name]} == {"2"}


def test_a_result_that_somebody_removed_is_made_again_whichever_of_the_job_it_is(tmp_path, run):
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
    assert all((tmp_path / f"results/ledger/{name}.parquet").is_file() for name in "012")
    assert find_results(tmp_path)["0"] == before["0"]


def test_another_number_of_shards_per_job_embeds_nothing_again(tmp_path, run):
    for number in range(4):
        make_shard(tmp_path / f"data/{number}.tar", 3)
    assert finish(run(shards_per_job=1)).count("rule embed:") == 4
    before = find_results(tmp_path)
    for number in (3, "auto"):
        assert "Nothing to be done" in finish(run(shards_per_job=number))
    make_shard(tmp_path / "data/4.tar", 3)
    output = finish(run(shards_per_job=3))
    assert output.count("rule embed:") == 1 and "input: data/4.tar\n" in output
    assert "Nothing to be done" in finish(run(shards_per_job=1))
    assert {name: find_results(tmp_path)[name] for name in before} == before


def test_a_killed_job_keeps_the_shards_that_it_had_finished(tmp_path, run):
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "hold").touch()
    for number in range(3):
        make_shard(tmp_path / f"data/{number}.tar", 8)
    process = run(embedder={"class": "held.py:Held"})
    wait_until(lambda: list(tmp_path.glob("results/record/new/[!.]*")), process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    kept = find_results(tmp_path)
    assert 1 <= len(kept) < 3
    (tmp_path / "hold").unlink()

    subprocess.run(
        [*snakemake_command(), "--directory", tmp_path, "--unlock"],
        cwd=tmp_path, env=clean_environment(), check=True, capture_output=True,
    )  # fmt: skip
    process = run(embedder={"class": "held.py:Held"})
    output = finish(process)
    assert process.returncode == 0, output
    assert len(find_results(tmp_path)) == 3
    assert kept.items() <= find_results(tmp_path).items()


def test_a_job_that_is_started_once_more_goes_on_where_it_was(tmp_path):
    shards = [make_shard(tmp_path / f"{number}.tar", 3) for number in range(2)]
    (first, *one), (second, *other) = [
        (shard, tmp_path / f"results/embeddings/{number}.parquet", tmp_path / f"results/ledger/{number}.parquet")
        for number, shard in enumerate(shards)
    ]
    command = [first, one[0], "--ledger", one[1], "--also", second, *other]
    command += ["--embedder", MEAN_COLOR, "--device", "cpu", "--record", tmp_path / "results"]
    assert "0 of 2 shards were finished before" in run_cli("embed", *command, "--addition", "a").stderr
    other[1].unlink()
    again = run_cli("embed", *command, "--addition", "a").stderr
    assert "1 of 2 shards were finished before" in again and f"{second}: 3 samples" in again
    assert f"{first}: 3 samples" in run_cli("embed", *command, "--addition", "of another run").stderr

    make_tar(first, {"a.jpg": b"no image"})
    assert f"failed shard: {first}: 1 of 1 samples failed" in run_cli("embed", *command).stderr
    assert [path.exists() for path in one] == [False, False]  # the old result is no result of this shard


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
