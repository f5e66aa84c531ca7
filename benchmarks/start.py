"""What a job imports, in CPU seconds: before it has its GPU, and after, with and without torch's compiler.

    python benchmarks/start.py

Each import is a process of its own, in turn; median of 7. `python -X importtime -c "import embedders.job.embed"`
says what takes the time.
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = 7
JOB = "import embedders.job.embed, embedders.builtin.timm_embedder"
STARTS = {
    "Python alone": "pass",
    "before the lease": "import embedders.cli, embedders.gpu.nvml, embedders.gpu.lease",
    "a job with a model of timm": JOB,
    "the same with torch's compiler": f"import torch._dynamo; {JOB}",
}


def measure(code: str) -> float:
    """CPU seconds, user and system, of a process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    seconds = {what: [] for what in STARTS}
    for _ in range(RUNS):
        for what, code in STARTS.items():
            seconds[what].append(measure(code))
    for what, measured in seconds.items():
        print(f"{what:32} {statistics.median(measured):5.2f} CPU s ({min(measured):.2f} to {max(measured):.2f})")
