"""Measures the start of a job: CPU and wall seconds from the command to the first batch, by phase.

    python benchmarks/start.py [RUNS] [CHECKOUT ...]

Each run is one `python -m embedders embed` on the CPU, with a shard of eight small JPEGs with a .json: once with a
plain class, whose model costs nothing, and once with a model of timm that is so small that only the imports matter.
The classes note the time when their file is imported, when they are built, when the model is loaded and when the
first batch comes. The results are medians of RUNS, 5 by default, after one run that is not counted. Other checkouts
of this repository, made by `git worktree add`, are measured in turn.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small_images import write_shard

IMAGES = 8
COLUMNS = ("--id-col", "id", "--metadata-columns", '{"caption": "string", "width": "int64"}')
CLASSES = """
import json, os, time

def note(phase):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps([phase, time.time(), time.process_time()]) + "\\n")

note("Python, torch and the code of a job")
from embedders import ImageEmbedder

class Noting:
    def load_embedding_model(self, device):
        note("the class and what it imports")
        forward = super().load_embedding_model(device)
        note("the model")

        def embed(batch):
            note("the first batch")
            return forward(batch)

        return embed

class Mean(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: batch.mean(dim=(2, 3))

class Plain(Noting, Mean):
    pass

if os.environ["CLASS"] == "Timm":
    from embedders import TimmImageEmbedder

    class Timm(Noting, TimmImageEmbedder):
        def __init__(self):
            super().__init__("test_vit.r160_in1k")
"""


def read_cpu_seconds() -> float:
    """Return the CPU time of the processes that this one has waited for."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def time_job(checkout: Path, folder: Path, class_name: str) -> dict[str, tuple[float, float]]:
    """Embed the shard once, and return the CPU and wall seconds of each phase."""
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    command = ["-m", "embedders", "embed", "small.tar", "out.parquet", "--ledger", "out.ledger", "--device", "cpu"]
    command += ["--embedder", f"classes.py:{class_name}", "--threads", "2", *COLUMNS]
    environment = os.environ | {"PYTHONPATH": str(checkout), "NOTES": str(notes), "CLASS": class_name}
    wall, cpu = time.time(), read_cpu_seconds()
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    events = [json.loads(line) for line in notes.read_text().splitlines()]
    events.append(["the end of the job", time.time(), read_cpu_seconds() - cpu])
    phases, cpu = {}, 0.0
    for phase, wall_now, cpu_now in events:
        phases[phase] = cpu_now - cpu, wall_now - wall
        wall, cpu = wall_now, cpu_now
    phases["from the command to the first batch"] = tuple(map(sum, zip(*list(phases.values())[:-1], strict=True)))
    return phases


def main(runs: int = 5, *others: str) -> None:
    """Print a line for each class and phase, with a column for each checkout."""
    checkouts = [Path(__file__).resolve().parent.parent, *(Path(other).resolve() for other in others)]
    measured: dict[tuple, list] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "small.tar", IMAGES)
        (folder / "classes.py").write_text(CLASSES)
        for run in range(runs + 1):
            for class_name in ("Plain", "Timm"):
                for checkout in checkouts:
                    for phase, seconds in time_job(checkout, folder, class_name).items():
                        measured.setdefault((class_name, phase), []).append(seconds)
                print(f"run {run} of {runs}: {class_name}", file=sys.stderr)
    print(" " * 44, *(f"{checkout.name[:16]:>18}" for checkout in checkouts))
    for (class_name, phase), seconds in measured.items():
        cells = []
        for number in range(len(checkouts)):
            cpu, wall = map(statistics.median, zip(*seconds[number :: len(checkouts)][1:], strict=True))
            cells.append(f"{cpu:5.2f} s CPU {wall:5.2f} s")
        print(f"{class_name:6} {phase:37}", *(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
