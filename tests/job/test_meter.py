import subprocess
import sys
import time

from mean_color import MeanColor
from support.tools import ROOT, make_shard, run_python

from embedders.job.embed import embed_shards
from embedders.job.meter import Meter, read_cpu_seconds
from embedders.job.shard_job import ShardJob
from embedders.output.parquet import read_account

MIB = 1 << 20


def work(seconds: float) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def test_cpu_time_is_counted_from_one_call_to_the_next():
    work(0.1)
    meter = Meter()
    work(0.2)
    first = meter.take().cpu_seconds
    assert first >= 0.2
    assert meter.take().cpu_seconds < first


def test_the_time_of_children_that_ended_is_counted():
    meter = Meter()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert meter.take().cpu_seconds >= 0.3


def test_without_a_gpu_nothing_is_leased():
    usage = Meter().take()
    assert (usage.gpu_seconds, usage.gpu_busy_seconds, usage.gpu_peak_memory_bytes) == (0, None, None)


def test_the_peak_of_the_memory_is_that_of_the_job_and_not_of_what_started_it(tmp_path):
    code = f"""
import subprocess, sys
if sys.argv[1] == "small":
    sys.path.insert(0, {str(ROOT)!r})
    from embedders.job.meter import read_peak_memory
    before = read_peak_memory()
    bytearray(300 << 20)
    print(before, read_peak_memory())
else:
    large = bytearray(600 << 20)
    subprocess.run([sys.executable, __file__, "small"], check=True)
"""
    (tmp_path / "start.py").write_text(code)
    before, after = map(int, run_python(tmp_path / "start.py", "large").stdout.split())
    assert before < 200 * MIB
    assert 300 * MIB <= after < 500 * MIB, "the memory was freed, and its peak stays"


class Burning(MeanColor):
    def load_embedding_model(self, device):
        work(0.5)
        return super().load_embedding_model(device)


def embed(folder, *tars):
    """Embed shards in one job; return what each finished one used, and the CPU seconds of the whole."""
    jobs = [ShardJob(str(tar), f"{folder}/{tar.stem}.parquet", f"{folder}/{tar.stem}.ledger") for tar in tars]
    before_s = read_cpu_seconds()
    done = list(embed_shards(Burning(), jobs, device="cpu", on_error=lambda job, error: None))
    return [read_account(job.ledger_path)[2] for job, _ in done], read_cpu_seconds() - before_s


def test_a_shard_has_what_was_used_since_the_last_one_but_not_what_a_failed_one_used(tmp_path):
    cut, first, second = (tmp_path / f"{name}.tar" for name in ("cut", "first", "second"))
    make_shard(first, 7), make_shard(second, 7)
    cut.write_bytes(first.read_bytes()[:2000])
    (one, other), total_s = embed(tmp_path, first, second)
    assert one.cpu_seconds >= 0.5, "the start of the job is its first shard's"
    assert 0 < other.cpu_seconds <= total_s - one.cpu_seconds + 0.01
    assert one.peak_memory_bytes > 100 * MIB
    assert other.peak_memory_bytes > 0.9 * one.peak_memory_bytes  # the kernel's count is not exact
    (after,), total_s = embed(tmp_path, cut, second)
    assert 0 < after.cpu_seconds <= total_s - 0.5
