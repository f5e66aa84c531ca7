"""Measures the start of a job: CPU and wall seconds from the command to the first batch, by phase, and to its end.

    python benchmarks/start.py [RUNS] [CHECKOUT ...]

Each run is one `python -m embedders embed` on the CPU, with a shard of eight small JPEGs with .json and .txt: once
with a plain class, whose model costs nothing, and once with a model of timm that is so small that only the imports
matter. The classes note the time when their file is imported, when they are built, when the model is loaded and when
the first batch comes. The same model as `embedders:TimmImageEmbedder`, without notes, has only the time of the job.
The results are medians of RUNS, 5 by default, after one run that is not counted. Other checkouts of this repository,
made by `git worktree add`, are measured in turn.
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
MODEL = "test_vit.r160_in1k"
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

if os.environ["NAME"] == "timm":
    from embedders import TimmImageEmbedder

    class Timm(Noting, TimmImageEmbedder):
        def __init__(self):
            super().__init__(os.environ["MODEL"])
"""
EMBEDDERS = {
    "plain": ("--embedder", "classes.py:Plain"),
    "timm": ("--embedder", "classes.py:Timm"),
    "built in": ("--embedder", "embedders:TimmImageEmbedder", "--embedder-args", json.dumps({"model_name": MODEL})),
}


def read_cpu_seconds() -> float:
    """Return the CPU time of the processes that this one has waited for."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def time_job(checkout: Path, folder: Path, name: str) -> dict[str, tuple[float, float]]:
    """Embed the shard once, and return the CPU and wall seconds of each phase."""
    notes = folder / "notes"
    notes.write_text("")
    command = ["-m", "embedders", "embed", "small.tar", "out.parquet", "--ledger", "out.ledger", "--device", "cpu"]
    command += ["--threads", "2", *COLUMNS, *EMBEDDERS[name]]
    environment = os.environ | {"PYTHONPATH": str(checkout), "NOTES": str(notes), "NAME": name, "MODEL": MODEL}
    start, cpu_before = time.time(), read_cpu_seconds()
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    events = [json.loads(line) for line in notes.read_text().splitlines()]
    phases, cpu, wall = {}, 0.0, 0.0
    for phase, now, cpu_now in events:
        phases[phase] = cpu_now - cpu, now - start - wall
        cpu, wall = cpu_now, now - start
    if events:
        phases["from the command to the first batch"] = cpu, wall
    return phases | {"the whole job": (read_cpu_seconds() - cpu_before, time.time() - start)}


def main(runs: int = 5, *others: str) -> None:
    """Print a line for each class and phase, with a column for each checkout."""
    checkouts = [Path(__file__).resolve().parent.parent, *(Path(other).resolve() for other in others)]
    measured: dict[tuple, list] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_shard(folder / "small.tar", IMAGES)
        (folder / "classes.py").write_text(CLASSES)
        for run in range(runs + 1):
            for name in EMBEDDERS:
                for checkout in checkouts:
                    for phase, seconds in time_job(checkout, folder, name).items():
                        measured.setdefault((name, phase), []).append(seconds)
            print(f"run {run} of {runs}", file=sys.stderr)
    print(" " * 46, *(f"{checkout.name[:16]:>18}" for checkout in checkouts))
    for (name, phase), seconds in measured.items():
        cells = []
        for number in range(len(checkouts)):
            cpu, wall = map(statistics.median, zip(*seconds[number :: len(checkouts)][1:], strict=True))
            cells.append(f"{cpu:5.2f} s CPU {wall:5.2f} s")
        print(f"{name:8} {phase:37}", *(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
