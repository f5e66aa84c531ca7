"""An embedder that tells by a line of a file which GPU it got, and that waits in the middle where a test says so."""

import json
from pathlib import Path

from support.cluster.runs import make_project

SOURCE = """
import json
import os
import signal
import time
from pathlib import Path

from embedders import ImageEmbedder

class Holding(ImageEmbedder):
    batch_size = 1
    seen = 0

    def load_embedding_model(self, device):
        given = dict(pair.split("=", 1) for pair in Path("/proc/self/environ").read_text().split("\\0") if pair)
        names = {"job": "SLURM_JOB_ID", "node": "SLURMD_NODENAME", "given": "CUDA_VISIBLE_DEVICES"}
        event = {key: given.get(name) for key, name in names.items()} | {"uuid": os.environ["CUDA_VISIBLE_DEVICES"]}
        with open("events", "a") as events:  # one write of one line: those of several jobs do not mix
            events.write(json.dumps(event) + "\\n")
        return self.embed

    def embed(self, batch):
        while Path("hold").exists() and self.seen >= int(Path("hold").read_text()):
            if Path("deaf").exists():  # as in a long call of the model
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(0.1)
        self.seen += 1
        return batch.mean(dim=(2, 3))
"""


def make_holding_project(folder: Path, shards: int, hold_after: int | None = 0, **config: object) -> Path:
    """Make a project whose jobs hold after so many images, for as long as its file `hold` is there."""
    project = make_project(folder, shards, embedder={"class": "holding.py:Holding"}, device="gpu", **config)
    (project / "holding.py").write_text(SOURCE)
    if hold_after is not None:
        (project / "hold").write_text(str(hold_after))
    return project


def read_events(project: Path) -> list[dict]:
    """Return what the jobs of a project have told so far."""
    path = project / "events"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
