"""Real runs in a real Apptainer, in small images from the real definition: alone, with GPUs, and through SLURM."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.cluster.apptainer import Apptainer, find_missing
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import ON_SLURM, ROOT, finish, make_project, start_snakemake
from support.cluster.slurm import GPUS_PER_NODE, wait_for
from support.tools import make_shard, run_cli

pytestmark = pytest.mark.cluster
DOCS = (ROOT / "docs/containers.md").read_text()
PROFILE = str(ROOT / "workflow/profiles/apptainer")
TELLING = """
import json
import os
import shutil
from pathlib import Path

import embedders
from embedders import ImageEmbedder

class Telling(ImageEmbedder):
    def __init__(self, weights_path):
        super().__init__()
        self.weights_path = weights_path

    def load_embedding_model(self, device):
        event = {
            "weights": Path(self.weights_path).read_text(),
            "uuid": os.environ["CUDA_VISIBLE_DEVICES"],
            "image": os.environ["APPTAINER_CONTAINER"],
            "nv": shutil.which("nvidia-smi"),
            "home": os.environ["HOME"],
            "code": embedders.__file__,
            "models": os.listdir(os.environ["HF_HOME"]),
            "leases": os.listdir(os.environ["TARQUET_LEASE_DIR"]),
            "networks": os.listdir("/sys/class/net"),
        }
        Path("told.json").write_text(json.dumps(event))
        return lambda batch: batch.mean(dim=(2, 3))
"""


@pytest.fixture(scope="module")
def apptainer():
    if missing := find_missing():
        pytest.skip(missing)
    with Apptainer() as apptainer:
        yield apptainer


@pytest.fixture(scope="module")
def image(apptainer):
    return apptainer.build("tarquet.sif", ROOT / "containers/tarquet.def")


@pytest.fixture
def disk():
    """A folder that Apptainer does not show by itself, as it does those of /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="tarquet-", dir="/srv"))
    yield folder
    shutil.rmtree(folder)


def read_tables(project):
    tables = {path.name: pq.read_table(path) for path in sorted((project / "results/embeddings").glob("*.parquet"))}
    assert tables
    return tables


def test_the_image_passes_its_own_test_without_a_network(apptainer, image):
    command = ["unshare", "--net", "apptainer", "test", image]
    done = subprocess.run(
        command, env=os.environ | apptainer.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "embedded one image" in done.stdout


def test_a_job_finds_what_is_elsewhere_on_a_gpu_without_a_network(apptainer, image, world, disk, tmp_path):
    world.write_gpus(1)
    for name in ("shards", "models/hub", "leases"):
        (disk / name).mkdir(parents=True)
    make_shard(disk / "shards/00000.tar", 3)
    (disk / "weights.txt").write_text("weights outside")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\n")  # which --nv shows, as it does the driver
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    embedder = {"class": "telling.py:Telling", "args": {"weights_path": f"{disk}/weights.txt"}}
    project = make_project(tmp_path / "project", 0, embedder=embedder, device="gpu", container=str(image))
    elsewhere = {"shards": f"{disk}/shards/*.tar", "output_dir": f"{disk}/results"}
    config = json.loads((project / "config.yaml").read_text())
    (project / "config.yaml").write_text(json.dumps(config | elsewhere))
    (project / "telling.py").write_text(TELLING)
    variables = apptainer.environment | {
        "PATH": f"{tmp_path}/bin:{apptainer.path}",
        "APPTAINERENV_LD_LIBRARY_PATH": str(world.driver), "FAKE_NVML": str(world.file),
        "TARQUET_LEASE_DIR": str(disk / "leases"), "HF_HOME": str(disk / "models"),
    }  # fmt: skip
    finish(start_snakemake(project, "--profile", PROFILE, before=["unshare", "--net"], **variables), project)
    assert json.loads((project / "told.json").read_text()) == {
        "weights": "weights outside",
        "uuid": "GPU-0",
        "image": str(image),
        "nv": "/usr/bin/nvidia-smi",
        "home": str(project),
        "code": "/opt/source/embedders/__init__.py",
        "models": ["hub"],
        "leases": ["GPU-0.lock"],
        "networks": ["lo"],
    }
    assert pq.read_table(disk / "results/embeddings/00000.parquet").num_rows == 3


def test_an_image_on_top_brings_weights_and_a_package_as_documented(apptainer, image, tmp_path):
    (block,) = re.findall(r"```text\n(Bootstrap.*?)```", DOCS, re.DOTALL)
    definition = tmp_path / "mine.def"
    definition.write_text(
        block.replace("open_clip_torch", "webcolors").replace("    weights.s", f"    {tmp_path}/weights.s")
    )
    (tmp_path / "weights.safetensors").write_text("weights inside")
    mine = apptainer.build("mine.sif", definition, base=image.name)
    code = "import webcolors; print(webcolors.__file__, open('/opt/weights/weights.safetensors').read())"
    done = subprocess.run(
        ["apptainer", "exec", mine, "python", "-c", code],
        env=os.environ | apptainer.environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert re.fullmatch(r"/opt/tarquet/lib/\S+ weights inside\n", done.stdout)


def test_through_slurm_each_job_is_in_a_container_on_the_gpu_that_slurm_gave(
    apptainer, image, slurm, nodes, local, tmp_path
):
    shards = GPUS_PER_NODE + 1
    project = make_holding_project(tmp_path / "project", shards, container=str(image))
    driver = nodes["n1"].env["LD_LIBRARY_PATH"]
    variables = apptainer.environment | {"APPTAINERENV_LD_LIBRARY_PATH": driver}
    run = start_snakemake(project, *ON_SLURM, "--sdm", "apptainer", **variables)
    wait_for(lambda: len(read_events(project)) == shards, "a job on each of five GPUs", 200)
    (project / "hold").unlink()
    finish(run, project)
    tables = read_tables(project)
    assert len(tables) == shards
    expected = read_tables(local)
    assert all(table.equals(expected[name]) for name, table in tables.items())
    events = read_events(project)
    assert Counter(event["node"] for event in events) == {"n1": 4, "n2": 1}
    assert {event["uuid"] for event in events} == {f"GPU-{event['node']}-{event['given']}" for event in events}
    assert len({event["uuid"] for event in events}) == shards
    made = json.loads(run_cli("inspect", project / "results/embeddings/00000.parquet").stdout)
    assert made["embedder"]["versions"]["python"] == find_python_version(apptainer, image)


def find_python_version(apptainer, image):
    """The version of Python in an image, which is not the one of this machine."""
    command = ["apptainer", "exec", image, "python", "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(
        command, env=os.environ | apptainer.environment, check=True, capture_output=True, text=True
    ).stdout.strip()
