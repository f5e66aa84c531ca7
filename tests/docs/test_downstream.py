"""docs/read-vectors.md: each piece of its code but FiftyOne's is run on the results of a real job, in each type."""

import io
import os
import re
import subprocess
import sysconfig
import venv
import zipfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.locks import read_pins
from support.tools import ROOT, make_image, make_tar, run_cli

from embedders.planning.shards import find_shards

PAGE = (ROOT / "docs/read-vectors.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
CODE = {
    name: re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for name, text in SECTIONS.items()
}
PARTS, INT8 = CODE.pop("Several vectors per image"), CODE.pop("int8")
BY_HAND = CODE.pop("FiftyOne")
VERSIONS = SECTIONS["Versions"].replace("\n", " ")
RECIPES = {name: codes[0] for name, codes in CODE.items() if codes}
ATLAS = re.search(r"```sh\n(.*?)\n(.*?)\n```", SECTIONS["Embedding Atlas"]).groups()
READERS = ["pyarrow", "pandas", "polars", "Hugging Face datasets", "PyTorch"]
SEARCHERS = ["DuckDB", "LanceDB", "FAISS"]
QUERY = {"DuckDB": "a-0001", "LanceDB": "a-0001"}  # FAISS is asked for the first row
EMBEDDER = """
import torch
from embedders import ImageEmbedder

class Grid(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: torch.nn.functional.adaptive_avg_pool2d(batch, 4).flatten(1) - 0.5

class Quarters(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: torch.nn.functional.adaptive_avg_pool2d(batch.mean(1), (8, 4)).transpose(1, 2) - 0.5

class Grey(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: torch.nn.functional.adaptive_avg_pool2d(batch.mean(1), 4).flatten(1) - 0.5
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
    return make_project(tmp_path_factory.mktemp(request.param), "Grid", request.param)


def make_project(folder, class_name, dtype):
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
    options = ("--metadata-columns", '{"number": "int64"}', "--embedding-dtype", dtype, "--device", "cpu")
    done = run_cli("embed", *paths, "--embedder", f"grid.py:{class_name}", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def truth(project):
    return read_truth(project, project.name.rstrip("0"))


def read_truth(project, dtype):
    """Keys, numbers, vectors and names of shards by pyarrow's plain reader, file by file."""
    paths = sorted((project / "results/embeddings").rglob("*.parquet"))
    tables = [pq.ParquetFile(path).read() for path in paths]
    shards = [path.stem for path, table in zip(paths, tables, strict=True) for _ in range(len(table))]
    assert sorted(table.num_rows for table in tables) == sorted(SHARDS.values())
    rows = [row for table in tables for row in table.to_pylist()]
    keys, numbers, vectors = ([row[name] for row in rows] for name in ("key", "number", "image_embedding"))
    return keys, numbers, np.array(vectors, dtype=dtype), shards


def run_recipe(name, project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(project / "cache"))
    return run_code(RECIPES[name])


def run_code(code):
    names = {}
    exec(code, names)
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
    keys, _, vectors, _ = truth
    check_nearest(run_recipe(name, project, monkeypatch)["nearest"], keys, vectors, QUERY.get(name, keys[0]))


def check_nearest(nearest, keys, vectors, query, count=10):
    found = [row["key"] if isinstance(row, dict) else row[0] if isinstance(row, tuple) else row for row in nearest]
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = dict(zip(keys, unit @ unit[keys.index(query)], strict=True))
    assert found[0] == query
    assert len(set(found)) == count
    np.testing.assert_allclose([cosines[key] for key in found], sorted(cosines.values())[::-1][:count], atol=1e-5)


@pytest.mark.slow
def test_several_vectors_per_image_keep_their_shape_in_each_reader(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path, "Quarters", "float32"))
    keys, _, vectors, _ = read_truth(tmp_path, "float32")
    assert vectors.shape == (sum(SHARDS.values()), 4, 8)
    ran = {name: run_code(code) for name, code in zip(("pyarrow", "polars", "DuckDB", "NumPy"), PARTS, strict=True)}
    for name in ("pyarrow", "polars", "NumPy"):
        assert np.array_equal(ran[name]["vectors"], vectors)
        assert ran[name]["vectors"].dtype == np.float32
    table = ran["DuckDB"]["table"]
    assert table.schema.field("vectors").type.list_size == 4
    assert table.schema.field("vectors").type.value_type.list_size == 8
    by_key = dict(zip(table["key"].to_pylist(), table["vectors"].to_pylist(), strict=True))
    assert np.array_equal([by_key[key] for key in keys], vectors)
    check_nearest(ran["DuckDB"]["nearest"], keys, vectors[:, 0], "a-0001")


@pytest.mark.slow
def test_int8_is_read_back_within_half_a_scale_by_each_reader(tmp_path, monkeypatch):
    (tmp_path / "exact").mkdir()
    (tmp_path / "int8").mkdir()
    _, _, exact, _ = read_truth(make_project(tmp_path / "exact", "Grey", "float32"), "float32")
    monkeypatch.chdir(make_project(tmp_path / "int8", "Grey", "int8"))
    keys, _, numbers, _ = read_truth(tmp_path / "int8", "int8")
    ran = {name: run_code(code) for name, code in zip(("pyarrow", "polars", "DuckDB", "FAISS"), INT8, strict=True)}
    half = np.abs(exact).max(axis=1, keepdims=True) / 254
    by_key = dict(ran["DuckDB"]["floats"].fetchall())
    read = [ran["pyarrow"]["vectors"], ran["polars"]["vectors"], np.array([by_key[key] for key in keys], np.float32)]
    for vectors in read:
        assert vectors.shape == exact.shape == (sum(SHARDS.values()), 16)
        assert (np.abs(vectors - exact) <= half * 1.0001).all()
        assert vectors.dtype == np.float32
    check_nearest(ran["DuckDB"]["nearest"], keys, numbers, "a-0001")
    check_nearest(ran["FAISS"]["nearest"], keys, numbers, keys[0])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """The folder of an environment with Embedding Atlas, installed by the page's command beside what is installed."""
    environment = tmp_path_factory.mktemp("atlas")
    venv.create(environment, with_pip=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    pins = [*read_pins("requirements.txt").values(), *read_pins("requirements-dev.txt").values()]
    version = re.search(r"embedding-atlas (\d\S*\d)", VERSIONS)[1]
    (environment / "constraints.txt").write_text("\n".join([*pins, f"embedding-atlas=={version}"]))
    run_in(environment, ATLAS[0], environment)
    return environment


def run_in(environment, command, folder):
    paths = {"PATH": f"{environment}/bin:{os.environ['PATH']}", "PIP_CONSTRAINT": f"{environment}/constraints.txt"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | paths, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_embedding_atlas_takes_the_vectors_and_finds_the_nearest(atlas, project, truth, tmp_path):
    check_atlas(atlas, project, *truth[:3], tmp_path)


@pytest.mark.long
def test_embedding_atlas_takes_int8(atlas, tmp_path):
    project = make_project(tmp_path, "Grey", "int8")
    check_atlas(atlas, project, *read_truth(project, "int8")[:3], tmp_path)


def check_atlas(atlas, project, keys, numbers, vectors, folder):
    # A web page with what the server would send to a browser.
    command = ATLAS[1].replace("embedding-atlas", f"embedding-atlas --export-application {folder}/map.zip", 1)
    run_in(atlas, command, project)
    with zipfile.ZipFile(folder / "map.zip") as page:
        rows = pq.read_table(io.BytesIO(page.read("data/dataset.parquet"))).to_pylist()
    assert {row["key"]: row["number"] for row in rows} == dict(zip(keys, numbers, strict=True))
    assert np.isfinite([[row["projection_x"], row["projection_y"]] for row in rows]).all()
    for row in rows[:3]:
        nearest = [rows[number]["key"] for number in row["__neighbors"]["ids"]]
        check_nearest(nearest[:5], keys, vectors, row["key"], 5)  # to Atlas all negative cosines are equally far


def test_every_recipe_of_the_page_is_run():
    assert set(RECIPES) == {*READERS, *SEARCHERS}
    assert PAGE.count("```python") == len(RECIPES) + len(PARTS) + len(INT8) + len(BY_HAND)
    assert PAGE.count("```sh") == 1, "that of Embedding Atlas"
    for code in BY_HAND:
        compile(code, "docs/read-vectors.md", "exec")


def test_the_versions_of_the_page_are_those_of_the_requirements():
    pins = [*read_pins("requirements.txt").values(), *read_pins("requirements-dev.txt").values()]
    named = re.findall(r"([a-z-]+) (\d+\.[\d.]*\d)", VERSIONS.partition("`make test-long`")[0])
    assert len(named) == len(RECIPES)
    assert not [f"{name}=={version}" for name, version in named if f"{name}=={version}" not in pins]
