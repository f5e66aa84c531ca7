"""`scores` in real Snakemake runs: what is made, and what runs again after which change."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.tools import MEAN_COLOR, make_shard, make_tar
from support.workflow import run_snakemake

from embedders.errors import ConfigError
from embedders.planning.config import name_scores

HEAD = """
from pathlib import Path

from embedders import ImageClassifier

class Mean(ImageClassifier):
    def __init__(self, weights, pred_column="mean"):
        super().__init__("mean", pred_column=pred_column, embedding_size=3)
        self.weight = float(Path(weights).read_text())

    def load_model(self, device):
        return lambda vectors: vectors.mean(dim=1) * self.weight
"""


def make_config(folder, *scores, **keys):
    config = {
        "shards": "data/*.tar",
        "embedder": {"class": MEAN_COLOR},
        "scores": list(scores),
        "report": False,
    } | keys
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"device": "cpu", "gpu": 0, "threads": 1}))


def run(folder, *options):
    done = run_snakemake(folder, *options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def read_scores(folder, name, shard="a"):
    table = pq.read_table(folder / f"results/scores/{name}/{shard}.parquet")
    return table["key"].to_pylist(), table[table.column_names[-1]].to_numpy()


def test_scores_are_made_from_the_vectors_and_a_changed_head_embeds_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    make_shard(tmp_path / "data/a.tar", 3)
    (tmp_path / "head.py").write_text(HEAD)
    (tmp_path / "weights.txt").write_text("1")
    plain = {"class": "head.py:Mean", "args": {"weights": "weights.txt"}}
    other = {"class": "head.py:Mean", "args": {"weights": "weights.txt", "pred_column": "light"}}
    make_config(tmp_path, plain, other)
    run(tmp_path, "--cores", "2")
    embeddings = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/embeddings").iterdir()}
    keys, scores = read_scores(tmp_path, "Mean")
    table = pq.read_table(tmp_path / "results/embeddings/a.parquet")
    assert keys == table["key"].to_pylist()
    assert scores == pytest.approx([sum(vector) / 3 for vector in table["image_embedding"].to_pylist()], abs=1e-6)
    assert (read_scores(tmp_path, "light")[1] == scores).all()

    (tmp_path / "weights.txt").write_text("2")
    make_config(tmp_path, plain)
    said = run(tmp_path, "--cores", "2")
    assert "rule score:" in said
    assert "rule embed:" not in said
    assert (read_scores(tmp_path, "Mean")[1] == scores * 2).all()
    assert embeddings == {path: path.stat().st_mtime_ns for path in (tmp_path / "results/embeddings").iterdir()}

    (tmp_path / "head.py").write_text(HEAD.replace("* self", "+ self"))
    planned = run(tmp_path, "-n")
    assert "rule score:" in planned
    assert "rule embed:" not in planned


def test_shards_of_one_job_an_empty_one_and_half_precision_are_scored(tmp_path):
    (tmp_path / "data").mkdir()
    make_shard(tmp_path / "data/a.tar", 3)
    make_tar(tmp_path / "data/b.tar", {})
    (tmp_path / "head.py").write_text(HEAD)
    (tmp_path / "weights.txt").write_text("1")
    mean = {"class": "head.py:Mean", "args": {"weights": "weights.txt"}}
    make_config(tmp_path, mean, shards_per_job=2, embedding_dtype="float16")
    run(tmp_path, "--cores", "2")
    scored, empty = (pq.read_table(tmp_path / f"results/scores/Mean/{shard}.parquet") for shard in "ab")
    table = pq.read_table(tmp_path / "results/embeddings/a.parquet")
    assert table.schema.field("image_embedding").type.value_type == pa.float16()
    assert (scored["key"], empty.num_rows) == (table["key"], 0)
    assert scored.schema.equals(empty.schema)
    expected = np.stack(table["image_embedding"].to_numpy()).astype(np.float32).mean(axis=1)
    np.testing.assert_allclose(scored["mean"].to_numpy(), expected, rtol=1e-6)


def test_the_folder_of_a_score_is_named_after_its_column_or_its_class():
    entry = {"class": "pkg.module:Head"}
    named = {"class": "pkg.module:Head", "args": {"pred_column": "light"}}
    assert list(name_scores([entry, named])) == ["Head", "light"]
    for scores, message in [
        ([entry, entry], "two are named 'Head'; set another pred_column"),
        ([{"class": "a:B", "args": {"pred_column": "a/b"}}], "pred_column is 'a/b'; expected a valid folder name"),
    ]:
        with pytest.raises(ConfigError, match=message):
            name_scores(scores)
