"""GPUs in real runs: Snakemake, `python -m embedders` and the leases together, on the fake driver of `fake_nvml`.

The embedders compute on the CPU and tell, by one line in a file each, which GPU they saw and when.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from support.fake_nvml.world import describe
from support.lease_events import JOBS, most_at_once
from support.tools import leftovers, make_shard, wait_until
from support.workflow import snakemake_command, snakemake_environment

from embedders.terminal import END_SIGNALS

EMBEDDER = """
import json
import os
import time
from pathlib import Path

from embedders import ImageEmbedder

def tell(what):
    event = {"what": what, "uuid": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid(), "time_s": time.monotonic()}
    with open("events", "a") as events:  # one write of one line: those of several jobs do not mix
        events.write(json.dumps(event) + "\\n")

class Telling(ImageEmbedder):
    def load_embedding_model(self, device):
        tell("take")
        return self.embed

    def embed(self, batch):
        self.hold()
        tell("leave")
        return batch.mean(dim=(2, 3))

    def hold(self):
        time.sleep(1)

class Meeting(Telling):
    def __init__(self, jobs):
        super().__init__()
        self.jobs = jobs

    def hold(self):
        end_s = time.monotonic() + 300
        while len(Path("events").read_text().splitlines()) < self.jobs:
            if time.monotonic() > end_s:
                raise TimeoutError("the others do not come")
            time.sleep(0.1)

class Failing(Telling):
    def hold(self):
        if os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\\nCUDA kernel errors might ...")

class Endless(Telling):
    def hold(self):
        time.sleep(600)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    return tmp_path


def configure(project, shards, embedder="Telling", **config):
    for number in range(shards):
        (project / "data").mkdir(exist_ok=True)
        make_shard(project / f"data/{number:05}.tar", 1)
    settings = {
        "shards": "data/*.tar",
        "embedder": {"class": f"embedder.py:{embedder}", "args": config.pop("args", {})},
        "threads": 1,
        "report": False,
    }
    (project / "config.yaml").write_text(json.dumps(settings | config))


def snakemake_world(world):
    return world.env | {"PATH": snakemake_environment()["PATH"]}


def run_snakemake(world, project, *options):
    done = subprocess.run(
        snakemake_command(*options),
        cwd=project,
        env=snakemake_world(world),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout


def start_embed(world, project, *options, embedder="Telling", **env):
    """Start the command of one shard, as the rule does, in the project's folder."""
    configure(project, 1)
    command = ["-m", "embedders", "embed", "data/00000.tar", "out/o.parquet", "--embedder", f"embedder.py:{embedder}"]
    return world.start(*command, "--threads", "1", *map(str, options), cwd=project, **env)


def run_embed(world, project, *options, **env):
    job = start_embed(world, project, *options, **env)
    printed = job.communicate(timeout=300)[0]
    return job.returncode, printed


def read_events(project):
    path = project / "events"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(events, key=lambda event: event["time_s"])


def assert_one_error(printed, *patterns):
    lines = [line for line in printed.splitlines() if not re.match(r"\S+ \S+ (INFO|WARNING) ", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), printed
    for pattern in patterns:
        assert re.search(pattern, lines[0]), printed


def check_run(project, shards, devices, most=1):
    """Every shard whole, every device used, none by more jobs than it takes, each job on the one it leased."""
    names = [f"{number:05}" for number in range(shards)]
    for name in names:
        assert pq.read_table(project / f"results/embeddings/{name}.parquet").num_rows == 1
    assert json.loads((project / "results/summary.json").read_text())["embedded"] == shards
    events = read_events(project)
    assert len({event["pid"] for event in events}) == shards and len(events) == 2 * shards
    assert most_at_once(events) == {f"GPU-{number}": most for number in range(devices)}
    logs = [(project / f"results/logs/embed/{name}.log").read_text() for name in names]
    leased = [re.findall(r"leased GPU \d (GPU-\d) \(Fake\)$", log, re.MULTILINE) for log in logs]
    assert sorted(uuid for uuids in leased for uuid in uuids) == sorted(
        event["uuid"] for event in events if event["what"] == "take"
    )
    return logs


# Many jobs, few GPUs


def test_jobs_queue_on_the_leases_when_snakemake_was_not_told_how_many_gpus_there_are(world, project):
    world.write_gpus(2)
    configure(project, 6)
    code, printed = run_snakemake(world, project, "--cores", "16")
    assert code == 0, printed
    logs = check_run(project, 6, 2)
    waited = [log for log in logs if re.search(r"waiting for a GPU since \d+ s: GPU 0 GPU-0: leased by pid", log)]
    assert len(waited) >= 2, "they did not start together, and so the test shows nothing"


@pytest.mark.long
def test_forty_shards_on_eight_gpus_that_snakemake_counts(world, project):
    world.write_gpus(8)
    configure(project, 40)
    code, printed = run_snakemake(world, project, "--cores", "16", "--resources", "gpu=8")
    assert code == 0, printed
    logs = check_run(project, 40, 8)
    print("jobs that had to wait for a lease:", sum("waiting" in log for log in logs))


@pytest.mark.parametrize(("devices", "jobs"), [(2, 4), pytest.param(8, 16, marks=pytest.mark.long)])
def test_the_terms_of_the_lease_are_those_of_the_configuration(world, project, devices, jobs):
    # No card is free but on these terms, and no job ends before all of them are at work.
    world.write(*(describe(f"GPU-{number}", procs=1, used=3000) for number in range(devices)))
    configure(
        project, jobs, "Meeting", args={"jobs": jobs},
        gpu_max_used_mb=4000, gpu_max_processes=1, jobs_per_gpu=2, gpu_wait_timeout_s=300,
    )  # fmt: skip
    code, printed = run_snakemake(world, project, "--cores", "16", "--resources", f"gpu={jobs}")
    assert code == 0, printed
    check_run(project, jobs, devices, most=2)


def test_a_job_that_waited_too_long_names_every_device_and_why(world, project):
    world.write(describe("GPU-0", procs=2), describe("GPU-1", used=2048), describe("GPU-2", mode=2))
    configure(project, 1, gpu_wait_timeout_s=0.5)
    code, printed = run_snakemake(world, project)
    assert code != 0
    (line,) = {line.strip() for line in printed.splitlines() if line.strip().startswith("error: ")}
    for pattern in (
        r"no GPU to lease after \d+ s: ",
        r"GPU 0 GPU-0: compute processes: 2 \(at most 0 expected\)",
        r"GPU 1 GPU-1: 2\.00 GiB in use \(at most 1\.00 expected\)",
        r"GPU 2 GPU-2: compute mode 'prohibited'",
    ):
        assert re.search(pattern, line), line
    assert not list(project.glob("results/*/*.parquet"))


# A GPU that fails at work


def test_after_a_gpu_failed_the_retry_lands_on_another_one(world, project):
    world.write_gpus(2)
    configure(project, 1, "Failing")
    code, printed = run_snakemake(world, project, "--retries", "1")
    assert code == 0, printed
    assert re.search(r"error: data/00000.tar: .* GPU GPU-0 failed: RuntimeError: CUDA error: uncorrectable", printed)
    assert [event["uuid"] for event in read_events(project)] == ["GPU-0", "GPU-1", "GPU-1"]
    assert "leased GPU 1 GPU-1" in (project / "results/logs/embed/00000.log").read_text()
    assert (world.leases / "GPU-0.failed").exists() and not (world.leases / "GPU-1.failed").exists()
    assert pq.read_table(project / "results/embeddings/00000.parquet").num_rows == 1


# What the jobs used


def read_usage(project):
    return json.loads((project / "results/summary.json").read_text())["usage"]


def test_a_run_says_how_long_its_gpus_were_leased_and_how_busy_they_were(world, project):
    world.write(describe("GPU-0", util=40), describe("GPU-1", util=40))
    configure(project, 2)
    code, printed = run_snakemake(world, project, "--cores", "2", "--resources", "gpu=2")
    assert code == 0, printed
    usage = read_usage(project)
    assert (usage["shards"], usage["gpu_images"], usage["gpu_unmeasured_shards"]) == (2, 2, 0)
    assert usage["gpu_seconds"] >= 2 and usage["cpu_seconds"] > 1, "each waits for a second in its model"
    assert usage["gpu_idle_share"] == pytest.approx(0.6, abs=0.01)
    assert usage["images_per_gpu_hour"] == pytest.approx(2 / usage["gpu_seconds"] * 3600, rel=1e-4)
    assert re.search(r"^use: 0\.\d+ GPU-hours leased, .* idle for 60% of the time; ", printed, re.MULTILINE)
    assert "GPU utilisation 40%" in (project / "results/logs/embed/00000.log").read_text()
    (project / "results/embeddings/00001.parquet").unlink()
    code, printed = run_snakemake(world, project, "--config", "device=cpu")
    assert code == 0, printed
    mixed = read_usage(project)
    assert (mixed["shards"], mixed["gpu_images"]) == (2, 1), "the other one was embedded on a CPU"
    assert mixed["gpu_seconds"] < usage["gpu_seconds"]


def test_jobs_that_share_a_gpu_lease_a_half_each_and_a_mig_instance_is_not_measured(world, project):
    world.write(describe("GPU-0", mig=1), describe("MIG-0", "mig", total=20000, util=None, mig=None))
    configure(project, 1, jobs_per_gpu=2)
    code, printed = run_snakemake(world, project)
    assert code == 0, printed
    usage = read_usage(project)
    log = (project / "results/logs/embed/00000.log").read_text()
    activities = "starting|waiting for images|in the model|writing|hashing"
    seconds = sum(map(float, re.findall(rf"([0-9.]+) s (?:{activities})", log)))
    assert usage["gpu_seconds"] == pytest.approx(seconds / 2, rel=0.3)
    assert (usage["gpu_idle_share"], usage["gpu_unmeasured_shards"]) == (None, 1)
    assert "GPU 0 MIG-0: its utilisation is unknown: it is a MIG instance" in log
    assert "how busy the GPUs were is unknown" in printed


def test_a_job_whose_driver_hangs_ends_when_it_is_told_to(world, project):
    world.write_gpus(1)
    job = start_embed(world, project, embedder="Endless")
    wait_until(lambda: read_events(project) and leftovers(project / "out"), job)
    world.write(describe("GPU-0", slow=600))
    time.sleep(2)  # the next question to the driver, which comes once a second, gets no answer
    job.send_signal(signal.SIGTERM)
    assert_one_error(job.communicate(timeout=300)[0], "stopped by SIGTERM")
    world.write_gpus(1)
    assert '"take"' in world.run(world.repository / JOBS, "once", str(os.getuid()), "1")


# On what a job computes


def test_auto_without_a_driver_is_the_cpu_and_the_log_says_so(world, project):
    world.file.unlink()
    code, printed = run_embed(world, project)
    assert code == 0, printed
    assert "computing on the CPU (no NVIDIA driver here)" in printed and "1 embedded, 0 failed" in printed
    assert [event["uuid"] for event in read_events(project)] == ["", ""]


def test_a_gpu_without_a_driver_is_an_error(world, project):
    world.file.unlink()
    code, printed = run_embed(world, project, "--device", "gpu")
    assert code == 1
    assert_one_error(printed, "expected an NVIDIA driver on this machine; use the device 'cpu'")
    assert leftovers(project / "out") == []


@pytest.mark.parametrize("device", ["auto", "gpu"])
@pytest.mark.parametrize("visible", ["", "-1"])
def test_where_no_gpu_is_admitted_a_job_fails_and_never_takes_the_cpu(world, project, device, visible):
    world.write_gpus(2)
    code, printed = run_embed(world, project, "--device", device, CUDA_VISIBLE_DEVICES=visible)
    assert code == 1
    refusals = (f"GPU {number} GPU-{number}: not in CUDA_VISIBLE_DEVICES='{visible}'" for number in range(2))
    assert_one_error(printed, r"after \d+ s", *refusals, "or use the device 'cpu'")
    assert leftovers(project / "out") == []


# Signals


@pytest.mark.parametrize("number", END_SIGNALS)
def test_a_job_that_is_told_to_end_cleans_up_and_drops_its_lease(world, project, number):
    world.write_gpus(1)
    job = start_embed(world, project, embedder="Endless")
    wait_until(lambda: read_events(project) and leftovers(project / "out"), job)
    assert "leased by pid" in world.run(world.repository / JOBS, "once", str(os.getuid()), "1")
    end_s = time.monotonic() + 300
    while job.poll() is None and time.monotonic() < end_s:  # SLURM tells it more than once
        job.send_signal(number)
        time.sleep(0.001)
    printed = job.communicate(timeout=300)[0]
    assert job.returncode == 128 + number
    assert_one_error(printed, f"stopped by {number.name}")
    assert leftovers(project / "out") == []
    assert '"take"' in world.run(world.repository / JOBS, "once", str(os.getuid()), "1")


def test_a_closed_terminal_does_not_end_a_job_that_nohup_protects(world):
    code = (
        "import signal; from embedders.terminal import *\nwith one_line_errors(): signal.raise_signal(signal.SIGHUP)"
    )
    assert subprocess.run(["nohup", sys.executable, "-c", code], env=world.env).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], env=world.env).returncode == 128 + signal.SIGHUP


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_or_a_closed_terminal_ends_a_run_and_its_jobs_and_leaves_no_lease(world, project, number):
    world.write_gpus(1)
    configure(project, 1, "Endless")
    with (project / "printed").open("w+") as printed:
        run = subprocess.Popen(
            snakemake_command(),
            cwd=project,
            env=snakemake_world(world),
            stdout=printed,
            stderr=printed,
            start_new_session=True,  # a terminal sends the signal to every process of the group
        )
        wait_until(lambda: list(project.glob("results/embeddings/.*.partial")), run)
        os.killpg(run.pid, number)
        assert run.wait(300) != 0
    log = project / "results/logs/embed/00000.log"
    wait_until(lambda: f"error: stopped by {number.name}" in log.read_text())
    assert not [name for name in leftovers(project / "results") if "parquet" in name]
    assert '"take"' in world.run(world.repository / JOBS, "once", str(os.getuid()), "1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_waits_for_a_gpu_can_be_told_to_end(world, project, number):
    world.write(describe("GPU-0", procs=1))
    job = start_embed(world, project)
    assert "waiting for a GPU since " in job.stdout.readline()
    job.send_signal(number)
    assert_one_error(job.communicate(timeout=300)[0], f"stopped by {number.name}")
    assert job.returncode == 128 + number


def test_verify_looks_for_its_files_before_it_waits_for_a_gpu(world, project):
    world.write(describe("GPU-0", procs=1))
    job = world.start("-m", "embedders", "verify", "none.parquet", cwd=project)
    assert_one_error(job.communicate(timeout=300)[0], "'none.parquet': there is no such file")
    assert job.returncode == 1


# The table of GPUs


def test_the_gpus_and_who_leases_them_are_shown(world):
    world.write_gpus(2)
    holder = world.start(world.repository / JOBS, "hold", "1")
    assert "take" in holder.stdout.readline()
    head, leased, free = world.run("-m", "embedders", "gpus").splitlines()
    assert re.split("  +", head)[-1] == "LEASED BY"
    assert re.search(rf"^0 +GPU-0 .* pid {holder.pid} on \S+, shard held.tar, since 20", leased)
    assert re.search(r"^1 +GPU-1 .* -$", free)
    rows = json.loads(world.run("-m", "embedders", "gpus", "--json"))
    (lease,) = rows[0]["leases"]
    assert (lease["pid"], lease["shard"]) == (str(holder.pid), "held.tar")
    assert (rows[1]["uuid"], rows[1]["leases"], rows[1]["free_bytes"] > 0) == ("GPU-1", [], True)
    holder.communicate()
    assert "pid" not in world.run("-m", "embedders", "gpus")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_a_driver_the_table_is_one_clear_line(world, options):
    world.file.unlink()
    table = world.start("-m", "embedders", "gpus", *options)
    assert_one_error(table.communicate(timeout=300)[0], "expected an NVIDIA driver on this machine")
    assert table.returncode == 1
