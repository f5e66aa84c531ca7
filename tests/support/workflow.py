"""What tests of real Snakemake runs share: a small project, the command, and readers of what it leaves."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from snakemake.cli import get_argument_parser
from support.tools import ROOT, wait_until

from embedders.output.writer import PROVENANCE

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

EMBEDDER = """
import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from embedders import ImageEmbedder
from beside import SCALE

class MeanColor(ImageEmbedder):
    def __init__(self, weights=None, batch_size=2, title="mean color"):
        super().__init__(title)
        self.batch_size = batch_size

    def load_embedding_model(self, device):
        return self.embed

    def embed(self, batch):
        while Path("hold").exists():
            Path("held").write_text(str(os.getpid()))
            time.sleep(0.02)
        return batch.mean(dim=(2, 3)) * SCALE

class Other(MeanColor):
    pass
"""
CONFIG = """\
shards: "data/*.tar"
embedder:
  class: "embedder.py:MeanColor"
  args: {weights: weights.bin}
metadata_columns: [color]
device: cpu
threads: 1
report: false
"""


def make_shard(path, names=("red", "green", "blue"), damaged=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for number, name in enumerate(names):
            image = io.BytesIO()
            Image.new("RGB", (32, 32), COLORS[name]).save(image, "PNG")
            content = b"no image" if number in damaged else image.getvalue()
            for suffix, member in (("png", content), ("json", json.dumps({"color": name}).encode())):
                info = tarfile.TarInfo(f"{number:04}.{suffix}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))


def snakemake_command(*options):
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *options]


def snakemake_environment():
    # As with an active environment in the clone: `python` is this one, and it finds the package.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


@cache
def list_snakemake_options():
    """Return all that `snakemake --help` explains, as `--cores`."""
    text = get_argument_parser().format_help()
    return frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


def run_snakemake(folder, *options):
    return subprocess.run(
        snakemake_command(*options),
        cwd=folder,
        env=snakemake_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


def run_well(folder, *options):
    done = run_snakemake(folder, *options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def find_planned(folder, *options):
    """The shards that would be embedded, by a dry run."""
    return set(re.findall(r"wildcards: shard=(\S+)", run_well(folder, "-n", *options)))


def read_colors(parquet):
    return [[round(value, 3) for value in row] for row in pq.read_table(parquet)["image_embedding"].to_pylist()]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def start_held_run(project):
    """Start a run whose embedder stops in the middle of shard c; gives Snakemake and the job's process id."""
    make_shard(project / "data/c.tar", ["green"] * 3)
    (project / "hold").touch()
    with (project / "printed.txt").open("w") as printed:
        snakemake = subprocess.Popen(
            snakemake_command(), cwd=project, env=snakemake_environment(), stdout=printed, stderr=printed
        )
    held = project / "held"
    wait_until(lambda: held.exists() and held.read_text(), snakemake)
    return snakemake, int(held.read_text())


def read_results(project) -> dict:
    """Every finished file by its path; a partial file does not count. The vectors byte by byte."""
    readers = {"embeddings": Path.read_bytes, "ledger": read_untimed, "results": read_summary}
    files = {}
    for pattern in ("embeddings/*", "ledger/*", "*.json"):
        for path in project.glob(f"results/{pattern}"):
            with suppress(FileNotFoundError):  # Snakemake removes what a failed job made
                if not path.name.endswith(".partial"):
                    files[str(path.relative_to(project))] = readers[path.parent.name](path)
    return files


def read_untimed(path) -> tuple:
    """A ledger, without the times and the usage in its footer."""
    table = pq.read_table(path)
    account = json.loads(table.schema.metadata[PROVENANCE])
    assert account.pop("seconds") and account.pop("usage") and account.pop("shard_version")
    return table.to_pylist(), account


def read_summary(path) -> dict:
    """A file of JSON, without the times and the usage of the summary."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in ("seconds", "usage")}
