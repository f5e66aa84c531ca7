"""300 SIGKILLs at random moments of real Snakemake runs: what is there at the end is what an undisturbed run makes.

Kills hit one process of the run's tree (a job, its shell, Snakemake itself, whose jobs then go on as orphans beside
the next run's) or all of it at once, as when a machine dies. About 40 minutes; `make test-long`.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest
from support.workflow import (
    CONFIG,
    EMBEDDER,
    make_shard,
    read_results,
    run_well,
    snakemake_command,
    snakemake_environment,
)

SHARDS = [f"s{number:02}" for number in range(8)]
# So slow that kills meet it at work, too: half of a job is otherwise the import of torch.
SLOW = EMBEDDER.replace("return batch.mean", "time.sleep(0.2); return batch.mean")


def kill_some(snakemake: psutil.Process, chance: random.Random) -> str:
    """Kill one process of a run, or all; says which."""
    tree = [snakemake, *snakemake.children(recursive=True)]
    found = {"all": tree, "snakemake": [snakemake]}
    for child in tree[1:]:
        command = child.cmdline()
        kind = "job" if command[1:3] == ["-m", "embedders"] else "shell" if "bash" in command[0] else "other"
        found.setdefault(kind, []).append(child)
    way = chance.choice([way for way in ("job", "job", "job", "shell", "snakemake", "all") if way in found])
    victims = tree if way == "all" else [chance.choice(found[way])]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    return way


@pytest.mark.long
@pytest.mark.parametrize(("kills", "shards_per_job"), [(200, 1), (100, 3)])
def test_kills_at_random_moments_leave_what_an_undisturbed_run_makes(tmp_path, kills, shards_per_job):
    project = tmp_path / "project"
    for name in SHARDS:
        make_shard(project / f"data/{name}.tar", ["red", "green", "blue"] * 4, damaged=[5])
    (project / "embedder.py").write_text(SLOW)
    (project / "beside.py").write_text("SCALE = 1\n")
    (project / "weights.bin").write_bytes(b"some weights")
    (project / "config.yaml").write_text(f"{CONFIG}shards_per_job: {shards_per_job}\n")
    run_well(project, "--cores", "2")
    undisturbed = read_results(project)
    assert len(undisturbed) == 2 * len(SHARDS) + 2
    shutil.rmtree(project / "results")

    chance, killed, finished = random.Random(4), Counter(), 0
    while killed.total() < kills:
        run = subprocess.Popen(
            snakemake_command("--cores", "2"), cwd=project, env=snakemake_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while run.poll() is None and killed.total() < kills:
            time.sleep(chance.uniform(0.5, 9))
            try:
                killed[kill_some(psutil.Process(run.pid), chance)] += 1
            except (psutil.NoSuchProcess, IndexError):
                continue  # it ended just then
            # What is there at any moment is whole.
            assert read_results(project).items() <= undisturbed.items()
        if run.wait() == 0:
            finished += 1
            wait_for_orphans(project)
            assert read_results(project) == undisturbed
            shutil.rmtree(project / "results")
        run_well(project, "--unlock")
    wait_for_orphans(project)
    run_well(project, "--cores", "2")
    print(f"{killed.total()} kills: {dict(killed)}; {finished} runs finished in between")
    assert read_results(project) == undisturbed
    assert not list((project / "results").rglob("*.partial"))


def wait_for_orphans(project) -> None:
    """Wait for jobs whose Snakemake was killed."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == os.fspath(project)]:
            return
        time.sleep(0.2)
    raise TimeoutError("jobs of a killed Snakemake are still at work")
