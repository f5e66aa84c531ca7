"""docs/read-vectors.md: each piece of its code is run on the results of a real run, in both types of vectors."""

import re

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.locks import read_pins
from support.tools import ROOT, make_image, make_tar, run_cli

from embedders.planning.shards import find_shards

PAGE = (ROOT / "docs/read-vectors.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
READERS = ["pyarrow", "pandas", "polars", "Hugging Face datasets", "PyTorch"]
SEARCHERS = ["DuckDB", "LanceDB", "FAISS"]
QUERY = {"DuckDB": "a-0001", "LanceDB": "a-0001"}  # FAISS is asked for the first row
EMBEDDER = """
import torch
from embedders import ImageEmbedder

class Grid(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: torch.nn.functional.adaptive_avg_pool2d(batch, 4).flatten(1) - 0.5
"""


# Nested, spaced and odd names, and all that readers pass over or take for columns: `number` and `key` are columns.
SHARDS = {
    "a": 9,
    "more/b": 6,
    "c": 0,
    """my shards/it's "two" $HOME; words #1""": 2,
    "my shards/[x], *?&ü\u3000": 2,
    "_hidden/.dotted": 2,
    "number=7/key=x": 2,
    "deep/number=1/_e\\f::g%20h": 2,
}


@pytest.fixture(scope="module", params=["float32", "float16"])
def project(request, tmp_path_factory):
    """A folder with the results of a real job: shards of all kinds of names, one of them empty."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "grid.py").write_text(EMBEDDER)
    for seed, (shard, count) in enumerate(SHARDS.items()):
        members = {}
        for number in range(count):
            key = f"{'ab'[seed] if seed < 2 else f'x{seed}'}-{number:04d}"
            members[f"{key}.jpg"] = make_image(100 * seed + number)
            members[f"{key}.json"] = {"number": number}
        (folder / shard).parent.mkdir(parents=True, exist_ok=True)
        make_tar(folder / f"{shard}.tar", members)
    paths = []
    for name, path in find_shards([str(folder / "**/*.tar"), f"{folder}/./_hidden/.dotted.tar"]).items():
        paths += ["--also", path, f"results/embeddings/{name}.parquet", f"results/ledger/{name}.parquet"]
    assert len(paths) == 4 * len(SHARDS)
    paths[:4] = [*paths[1:3], "--ledger", paths[3]]
    options = ("--metadata-columns", '{"number": "int64"}', "--embedding-dtype", request.param, "--device", "cpu")
    done = run_cli("embed", *paths, "--embedder", "grid.py:Grid", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def truth(project):
    """Keys, numbers, vectors and names of shards by pyarrow's plain reader, file by file."""
    paths = sorted((project / "results/embeddings").rglob("*.parquet"))
    tables = [pq.ParquetFile(path).read() for path in paths]
    shards = [path.stem for path, table in zip(paths, tables, strict=True) for _ in range(len(table))]
    assert sorted(table.num_rows for table in tables) == sorted(SHARDS.values())
    rows = [row for table in tables for row in table.to_pylist()]
    keys, numbers, vectors = ([row[name] for row in rows] for name in ("key", "number", "image_embedding"))
    return keys, numbers, np.array(vectors, dtype=project.name.rstrip("0")), shards


def run_recipe(name, project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(project / "cache"))
    names = {}
    exec(RECIPES[name], names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_every_row_in_order_with_its_vector(name, project, truth, monkeypatch):
    names = run_recipe(name, project, monkeypatch)
    keys, numbers, vectors, shards = truth
    assert np.array_equal(np.asarray(names["vectors"]), vectors)
    # with_format("numpy") of datasets turns every float into float32
    assert np.asarray(names["vectors"]).dtype == ("float32" if "dataset" in name else vectors.dtype)
    if name == "PyTorch":
        assert [int(number) for _, number in names["dataset"]] == numbers
    else:
        table = next(names[word] for word in ("table", "frame", "dataset") if word in names)
        assert list(map(str, table["key"])) == keys
        assert list(map(str, table["shard"])) == shards
        assert list(map(int, table["number"])) == numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_finds_the_nearest_by_cosine(name, project, truth, monkeypatch):
    nearest = run_recipe(name, project, monkeypatch)["nearest"]
    found = [row["key"] if isinstance(row, dict) else row[0] if isinstance(row, tuple) else row for row in nearest]
    keys, _, vectors, _ = truth
    query = QUERY.get(name, keys[0])
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = dict(zip(keys, unit @ unit[keys.index(query)], strict=True))
    assert found[0] == query
    assert len(set(found)) == 10
    np.testing.assert_allclose([cosines[key] for key in found], sorted(cosines.values())[::-1][:10], atol=1e-5)


def test_every_recipe_of_the_page_is_run():
    assert set(RECIPES) == {*READERS, *SEARCHERS}
    assert PAGE.count("```python") == len(RECIPES)


def test_the_versions_of_the_page_are_those_of_the_requirements():
    pins = [*read_pins("requirements.txt").values(), *read_pins("requirements-dev.txt").values()]
    named = re.findall(r"([a-z-]+) (\d+\.[\d.]*\d)", PAGE.partition("## Versions")[2].replace("\n", " "))
    assert len(named) == len(RECIPES)
    assert not [f"{name}=={version}" for name, version in named if f"{name}=={version}" not in pins]
