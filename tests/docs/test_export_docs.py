"""docs/export.md: its commands are run on a finished run, and then its Python on what they made."""

import re

import datasets
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.results import make_run
from support.tools import ROOT, run_cli

PAGE = (ROOT / "docs/export.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = {
    name: code for name, text in SECTIONS.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture(scope="module", params=["float32", "float16"])
def project(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    make_run(folder / "results", {"a": 30, "b": 12}, dtype=request.param, name="image_embedding")
    for command in re.findall(r"^tarquet (export .*)$", PAGE, re.MULTILINE):
        done = run_cli(*command.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["FAISS", "SemDeDup", "LanceDB", "Hugging Face"])
def test_a_recipe_gives_what_it_says(name, project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(project / "cache"))
    names = {}
    exec(RECIPES[name], names)
    vectors = np.load(project / "vectors/vectors.npy")
    if name == "FAISS":
        index = faiss.read_index(str(project / "images.faiss"))
        assert index.ntotal == 42
        assert np.array_equal(index.reconstruct_n(0, 42), vectors.astype(np.float32))
    elif name == "SemDeDup":
        table = pq.read_table(project / "semdedup")
        assert table.schema.field("embeddings").type.value_type == pa.float32()
        assert np.array_equal(np.stack(table["embeddings"].to_numpy()), vectors)
        assert len(set(table["id"].to_pylist())) == 42 and table["id"][30].as_py() == "b/00000"
    elif name == "LanceDB":
        assert (names["nearest"][0]["shard"], names["nearest"][0]["key"]) == ("a", names["query"]["key"])
        assert len(names["nearest"]) == 10
    else:
        assert np.array_equal(names["vectors"], vectors)


def test_every_recipe_of_the_page_is_run():
    assert set(RECIPES) == {"FAISS", "SemDeDup", "LanceDB", "Hugging Face"}
    assert PAGE.count("```python") == len(RECIPES)
    assert len(RECIPES["FAISS"].strip().splitlines()) <= 8
