"""The column `shard`: every file names the shard of each row, so that shard and key name one row of a run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brightness import Brightness
from mean_color import MeanColor
from support.tools import MEAN_COLOR, make_image, make_tar, run_cli

from embedders import embed_shard
from embedders.errors import ConfigError, EmbedderError
from embedders.job.score import score_file
from embedders.output.columns import Columns
from embedders.output.footers import describe_file
from embedders.output.parquet import read_ledger

FIELD = pa.field("shard", pa.string(), nullable=False)


@pytest.fixture
def shard(tmp_path):
    members = {}
    for n in (1, 2):
        members |= {f"{n}.jpg": make_image(n), f"{n}.json": {"shard": f"own {n}", "id": n}, f"{n}.shard": b"a member"}
    return make_tar(tmp_path / "in.tar", members | {"3.jpg": b"broken"})


def find_shards(path):
    table = pq.read_table(path)
    assert table.schema.field(0).equals(FIELD)
    assert pq.read_schema(path).names[1] == "key"
    return table["shard"].to_pylist()


def test_vectors_ledger_and_scores_name_the_shard_of_each_row(tmp_path, shard):
    output, ledger, scores = (tmp_path / "out" / f"{name}.parquet" for name in ("00007", "ledger", "scores"))
    embed_shard(MeanColor(), shard, output, ledger_path=ledger, device="cpu", max_failed_fraction=1)
    score_file(output, scores, Brightness(), "cpu")
    assert find_shards(output) == find_shards(scores) == ["00007"] * 2
    assert find_shards(ledger) == ["00007"]
    assert [sample.key for sample in read_ledger(str(ledger))] == ["3"]
    chunk = pq.read_metadata(output).row_group(0).column(0)
    assert chunk.path_in_schema == "shard" and chunk.total_compressed_size < 150
    assert "RLE_DICTIONARY" in chunk.encodings


def test_the_name_is_that_in_the_run_or_the_one_asked_for_or_that_of_the_output(tmp_path, shard):
    options = ("--embedder", MEAN_COLOR, "--device", "cpu", "--max-failed-fraction", "1")
    for place in ("embeddings/val/00000", "retried/embeddings/val/embeddings/0", "elsewhere/x.y"):
        output = tmp_path / f"results/{place}.parquet"
        done = run_cli("embed", shard, output, *options, "--record", tmp_path / "results")
        assert done.returncode == 0, done.stderr
        name = {"embeddings/val/00000": "val/00000", "elsewhere/x.y": "x.y"}.get(place, "val/embeddings/0")
        assert set(find_shards(output)) == {describe_file(str(output)).provenance.shard.name} == {name}
    output = tmp_path / "results/embeddings/b.parquet"
    assert run_cli("embed", shard, output, *options).returncode == 0
    assert set(find_shards(output)) == {"b"}
    for asked, name in (("a/b", "a/b"), ("", "b"), ("\udcff", "?")):
        embed_shard(MeanColor(), shard, output, shard_name=asked, device="cpu", max_failed_fraction=1)
        assert set(find_shards(output)) == {name}


def test_a_field_of_that_name_is_refused_and_all_holds_it(tmp_path, shard):
    for option in (
        {"id_col": "shard"},
        {"metadata_columns": ["id", "shard"]},
        {"metadata_columns": {"shard": "int64"}},
    ):
        with pytest.raises(ConfigError, match=f"^{next(iter(option))}: 'shard' is the column of .*; rename"):
            Columns(**option)
    done = run_cli(
        "embed", shard, tmp_path / "o.parquet", "--embedder", MEAN_COLOR, "--id-col", "shard", "--device", "cpu"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: id_col: 'shard' is the column of the names of shards;")
    asked = {"metadata_columns": "all", "device": "cpu", "max_failed_fraction": 1}
    embed_shard(MeanColor(), shard, tmp_path / "o.parquet", **asked)
    stored = [json.loads(text) for text in pq.read_table(tmp_path / "o.parquet")["metadata"].to_pylist()]
    assert stored == [
        {"shard": "own 1", "id": 1},
        {"shard": "own 2", "id": 2},
    ]  # `all` takes no member of that suffix


@pytest.mark.parametrize(
    "made", [{"image_embedding_column": "shard"}, {"classifiers": [Brightness(pred_column="shard")]}]
)
def test_a_column_of_vectors_or_scores_of_that_name_is_refused(tmp_path, shard, made):
    with pytest.raises((ConfigError, EmbedderError), match="column 'shard' would be there twice; rename"):
        embed_shard(MeanColor(**made), shard, tmp_path / "o.parquet", device="cpu", max_failed_fraction=1)
    assert not (tmp_path / "o.parquet").exists()
