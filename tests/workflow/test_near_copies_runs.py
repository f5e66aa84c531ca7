"""`near_copies` in real Snakemake runs: what is found, and what runs again after which change."""

import io
import shutil

import pytest
import yaml
from PIL import Image
from support.tools import make_image, make_tar
from support.workflow import run_snakemake, run_well

from embedders.output.near_copies import read_near_copies

EMBEDDER = """
import torch
from embedders import ImageEmbedder

class Grid(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: torch.nn.functional.adaptive_avg_pool2d(batch, 8).flatten(1) - 0.5
"""
CONFIG = {
    "shards": "data/*.tar",
    "embedder": {"class": "grid.py:Grid"},
    "metadata_columns": {"width": "int64", "height": "int64"},
    "near_copies": {"cosine": 0.98},
    "report": False,
    "device": "cpu",
    "gpu": 0,
    "threads": 1,
}


def configure(folder, **keys):
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | keys))


def make_shard(folder, name, pictures):
    """Write a shard of pictures: key -> the seed of one, the factor of its size."""
    members = {}
    for key, (seed, factor) in pictures.items():
        image = Image.open(io.BytesIO(make_image(seed, (80, 60), quality=95)))
        size = (round(80 * factor), round(60 * factor))
        content = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(content, "JPEG", quality=80)
        members |= {f"{key}.jpg": content.getvalue(), f"{key}.json": {"width": size[0], "height": size[1]}}
    make_tar(folder / f"data/{name}.tar", members)


def read_pairs(folder):
    table, counts = read_near_copies(folder / "results/near_copies.parquet")
    rows = table.to_pylist()
    pairs = {((row["shard"], row["key"]), (row["other_shard"], row["other_key"])) for row in rows}
    kept = {(row["shard"], row["key"]) for row in rows if row["keep"]}
    return pairs, kept | {(row["other_shard"], row["other_key"]) for row in rows if row["other_keep"]}, counts


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    (folder / "data").mkdir()
    (folder / "grid.py").write_text(EMBEDDER)
    make_shard(folder, "a", {"0": (1, 1), "1": (2, 1), "2": (3, 1)})
    make_shard(folder, "b", {"0": (4, 1), "1": (1, 2), "2": (5, 1)})
    configure(folder)
    return folder


def test_a_run_lists_its_near_copies_and_follows_each_change(project):
    said = run_well(project)
    assert "2 of 6 images are near copies (a cosine of 0.98 or more), in 1 groups and 1 pairs" in said
    assert read_pairs(project)[:2] == ({(("a", "0"), ("b", "1"))}, {("a", "0")})
    left = {path.name for path in (project / "results/.near_copies").glob("*/*")}
    assert left == {"plan.npz", "0.pairs.npz"}
    assert "Nothing to be done" in run_well(project)

    # Another choice of what to keep compares nothing again.
    configure(project, near_copies={"cosine": 0.98, "keep": "largest"})
    said = run_well(project)
    assert "rule list_near_copies:" in said
    assert "rule compare_near_copies:" not in said
    assert read_pairs(project)[1] == {("b", "1")}

    # A new shard, whose copy is of a shard that was there.
    make_shard(project, "c", {"0": (2, 0.8), "1": (6, 1)})
    said = run_well(project)
    assert said.count("rule embed:") == 1
    copies = {(("a", "0"), ("b", "1")), (("a", "1"), ("c", "0"))}
    assert read_pairs(project)[0] == copies
    assert read_pairs(project)[2].rows == {"a": 3, "b": 3, "c": 2}

    # Another cosine.
    configure(project, near_copies={"cosine": 1})
    said = run_well(project)
    assert "rule embed:" not in said
    assert read_pairs(project)[0] == set()

    # The one before again, for which the pairs are still there.
    configure(project)
    said = run_well(project)
    assert "rule compare_near_copies:" not in said
    assert read_pairs(project)[0] == copies

    # A shard that is gone; its vectors still lie there.
    (project / "data/b.tar").unlink()
    run_well(project)
    assert (project / "results/embeddings/b.parquet").exists()
    assert read_pairs(project)[0] == {(("a", "1"), ("c", "0"))}

    # Off, nothing looks for them; on again, what is there is still right.
    configure(project, near_copies={})
    assert "near_copies" not in run_well(project)
    configure(project)
    assert "Nothing to be done" in run_well(project)

    # Off while the vectors change: what was found before is not right for these.
    configure(project, near_copies={})
    (project / "grid.py").write_text(EMBEDDER.replace("- 0.5", "* torch.linspace(-1, 1, 192) ** 9"))
    run_well(project)
    before = read_pairs(project)[2]
    configure(project)
    said = run_well(project)
    assert "rule embed:" not in said and "rule compare_near_copies:" in said
    assert read_pairs(project)[2].made_from not in ("", before.made_from)
    assert "Nothing to be done" in run_well(project)

    # The same if the intermediate files were removed meanwhile.
    configure(project, near_copies={})
    shutil.rmtree(project / "results/.near_copies")
    (project / "grid.py").write_text(EMBEDDER)
    run_well(project)
    configure(project)
    assert "rule compare_near_copies:" in run_well(project)
    assert "Nothing to be done" in run_well(project)

    # And for the search of an earlier cosine.
    configure(project, near_copies={"cosine": 1})
    assert "rule compare_near_copies:" in run_well(project)


def test_where_the_embedding_may_use_a_gpu_the_search_may_too(project):
    configure(project, device="auto", gpu=1)
    planned = run_snakemake(project, "-n", "-p", "--forceall").stdout
    rules = {text.split(":")[0]: text for text in planned.split("rule ")[1:]}
    for step, gpus in (("plan", False), ("assign", True), ("compare", True)):
        assert ("gpu=1" in rules[f"{step}_near_copies"]) == gpus
        assert ("--device=auto" in rules[f"{step}_near_copies"]) == gpus


def test_what_cannot_be_is_one_line_before_anything_runs(project, tmp_path):
    for near_copies, columns, message in [
        ({"cosine": 0.98, "keep": "largest"}, [], "metadata_columns has no width and no height; expected both"),
        ({"cosine": 2}, [], "near_copies.cosine is 2; expected: The minimum cosine similarity"),
        ({"cosin": 0.9}, [], "unknown key 'near_copies.cosin'; did you mean 'cosine'?"),
    ]:
        config = CONFIG | {"near_copies": near_copies, "metadata_columns": columns, "shards": f"{project}/data/a.tar"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = run_snakemake(tmp_path, "-n")
        assert done.returncode != 0
        assert message in done.stdout
