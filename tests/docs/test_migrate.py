"""docs/migrate.md: its Python runs, its config.yaml is one, and clip-retrieval's folder is as its readers expect."""

import re

import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from support.results import make_provenance, write_vectors
from support.tools import ROOT

from embedders.output.columns import Columns
from embedders.planning.config import check_config

PAGE = (ROOT / "docs/migrate.md").read_text()
IMPORTS, TO_CLIP_RETRIEVAL = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SCHEMA_PATH = ROOT / "workflow/schemas/config.schema.yaml"


def test_the_names_of_nemo_curator_are_here():
    names = {}
    exec(IMPORTS, names)
    assert names["TimmImageEmbedder"].load_dataset_shard is names["ImageEmbedder"].load_dataset_shard
    assert issubclass(names["NsfwClassifier"], names["ImageClassifier"])


def test_the_configuration_for_what_was_a_script_keeps_to_the_schema():
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    config = check_config(yaml.safe_load(block), SCHEMA_PATH)
    assert config["scores"][0]["class"] == "embedders:AestheticClassifier"


def test_every_key_and_class_that_the_table_names_exists():
    keys = set(re.findall(r"`([a-z_]+):", PAGE.partition("## From clip-retrieval")[2])) - {"args", "class"}
    assert keys >= {"metadata_columns", "embedding_dtype"}
    assert keys <= set(yaml.safe_load(SCHEMA_PATH.read_text())["properties"])
    for path, name in re.findall(r"`class: (examples/\w+\.py):(\w+)`", PAGE):
        assert f"class {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_results_become_the_folder_that_clip_retrieval_reads(tmp_path, monkeypatch, dtype):
    random = np.random.default_rng(0)
    written = []
    for path, rows in [("a", 12), ("b", 0), ("more/c", 11), ("z", 3)]:
        vectors = random.normal(size=(rows, 16))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
        keys = [f"{path}-{number}" for number in range(rows)]
        written += [(path, key, vector) for key, vector in zip(keys, vectors, strict=True)]
        output = tmp_path / f"results/embeddings/{path}.parquet"
        samples = [{"__key__": key, "caption": key.upper()} for key in keys]
        made = make_provenance(rows, shard=path)
        write_vectors(output, samples, vectors, Columns("__key__", ["caption"]), "image_embedding", made)
    monkeypatch.chdir(tmp_path)
    exec(TO_CLIP_RETRIEVAL, {})

    # as `clip-retrieval index` and `back` do: files in the order of their names, row by row
    arrays = [np.load(path) for path in sorted((tmp_path / "clip/img_emb").iterdir())]
    frames = [pd.read_parquet(path) for path in sorted((tmp_path / "clip/metadata").glob("*.parquet"))]
    assert [len(array) for array in arrays] == [len(frame) for frame in frames] == [12, 11, 3]
    assert arrays[0].dtype == dtype
    index = faiss.IndexFlatIP(16)
    index.add(np.concatenate(arrays).astype("float32"))
    metadata = pd.concat(frames)
    for shard, key, vector in written:
        _, rows = index.search(vector[None].astype("float32"), 1)
        row = metadata[rows[0, 0] : rows[0, 0] + 1].to_dict(orient="records")[0]
        assert row == {"shard": shard, "image_path": key, "caption": key.upper()}
    names = pq.read_schema(tmp_path / "clip/metadata/metadata_000000.parquet").names
    assert names == ["shard", "image_path", "caption"]
