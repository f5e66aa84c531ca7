"""Claims of an output folder by real processes: one run at a time, or the parts of one run."""

import json
import signal
import subprocess
import sys

import pytest
from support.workflow import snakemake_environment

from embedders.errors import ConfigError, OutputError
from embedders.planning.parts import WHOLE, Part, read_part
from embedders.planning.running import claim_folder

PLAN = {"list of shards": "1", "configuration": "2"}
CLAIMANT = """
import json, sys
from embedders.errors import TarquetError
from embedders.planning.parts import read_part
from embedders.planning.running import claim_folder

try:
    claim_folder(sys.argv[1], read_part(sys.argv[2]), json.loads(sys.argv[3]))
except TarquetError as error:
    print(error)
else:
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claim(tmp_path):
    """Start a process that claims a part of a folder; return it and what it printed."""
    started = []

    def start(part, plan=PLAN, **variables):
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, tmp_path, part, json.dumps(plan)],
            env=snakemake_environment() | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate()


def say(process):
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_parts_of_one_run_claim_a_folder_together_also_when_they_start_at_once(claim):
    parts = [claim(f"{number}/8") for number in range(1, 9)]
    assert [say(part) for part in parts] == ["claimed"] * 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "plan", "said"),
    [
        ("1/1", PLAN, "part 1/2 of a run is using this folder (process "),
        ("1/2", PLAN, "part 1/2 of a run is using this folder (process "),
        ("2/3", PLAN, "part 1/2 of a run is using this folder with another number of parts (process "),
        (
            "2/2",
            PLAN | {"configuration": "3"},
            "part 1/2 of a run is using this folder with another configuration (process ",
        ),
        (
            "2/2",
            {"list of shards": "", "configuration": ""},
            "with another list of shards and configuration (process ",
        ),
    ],
)
def test_what_could_embed_a_shard_twice_is_refused(claim, tmp_path, part, plan, said):
    first = claim("1/2")
    assert say(first) == "claimed"
    line = say(claim(part, plan))
    assert said in line and f"remove '{tmp_path}/record/parts/1-of-2/run.json'" in line
    first.communicate()
    assert say(claim(part, plan)) == "claimed"


@pytest.mark.slow
def test_no_part_runs_beside_the_whole_run_and_a_dead_one_gives_way(claim):
    whole = claim("1/1")
    assert say(whole) == "claimed"
    assert "another run is using this folder (process " in say(claim("1/2"))
    whole.kill()
    whole.wait()
    part = claim("1/2")
    assert say(part) == "claimed"
    part.send_signal(signal.SIGKILL)
    part.wait()
    assert say(claim("1/2")) == "claimed"


@pytest.mark.slow
def test_a_job_that_slurm_starts_again_takes_over_from_itself_on_another_node(claim, tmp_path):
    slurm = {"SLURM_CLUSTER_NAME": "c", "SLURM_JOB_ID": "7", "SLURM_CONF": "/dev/null"}  # nobody to ask here
    first = claim("1/2", **slurm)
    assert say(first) == "claimed"
    path = tmp_path / "record/parts/1-of-2/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    again = {"SLURM_RESTART_COUNT": "1"}
    for other in ({}, slurm, slurm | again | {"SLURM_JOB_ID": "8"}, slurm | again | {"SLURM_CLUSTER_NAME": "d"}):
        assert "host elsewhere, SLURM job 7" in say(claim("1/2", **other))
    assert say(claim("1/2", **slurm, **again)) == "claimed"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "record").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        claim_folder(tmp_path, WHOLE)


def test_parts_divide_the_shards():
    shards = {f"{number:02}": f"{number:02}.tar" for number in range(11)}
    parts = [Part(number, 4).select(shards) for number in range(1, 5)]
    assert sorted(name for part in parts for name in part) == list(shards)
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert WHOLE.select(shards) == shards and read_part("1/1") == WHOLE
    assert Part(12, 12).select(shards) == {}


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"part is '17/16'; expected a number from 1 to 16"):
        read_part("17/16")
