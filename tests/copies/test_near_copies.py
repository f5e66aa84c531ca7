"""Near copies from vectors to list: against brute force, on damaged and degenerate runs, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fake_nvml.world import describe
from support.results import make_run
from support.tools import clean_environment, run_cli

from embedders.copies import clusters, gpu_search, plan, search
from embedders.copies.clusters import AssignedRows, assign
from embedders.copies.compare import compare
from embedders.copies.gpu_search import GpuSearch
from embedders.copies.groups import list_near_copies
from embedders.copies.plan import make_plan, normalize, read_plan
from embedders.copies.search import CpuSearch
from embedders.copies.settings import check_settings, choose_part, count_parts, is_stale, name_search
from embedders.errors import ConfigError, ShardError
from embedders.output.near_copies import read_near_copies
from embedders.output.run import open_run
from embedders.output.vectors import round_vectors


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other stand still where other tests take the cores."""
    search.set_threads(1)


def make_vectors(rows, dimension, copies, seed=0):
    """Random vectors with some directions more frequent than others; the last ones are copies of the first."""
    chance = np.random.default_rng(seed)
    vectors = chance.standard_normal((20, dimension))[chance.integers(0, 20, rows)]
    vectors = vectors + chance.standard_normal((rows, dimension))
    vectors[rows - copies :] = vectors[:copies] + 0.1 * chance.uniform(0, 1, (copies, 1)) * chance.standard_normal(
        (copies, dimension)
    )
    return vectors * chance.uniform(0.5, 2, (rows, 1))


def find_by_force(vectors, cosine):
    unit = vectors.astype(np.float32)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    pairs = np.argwhere(np.triu(cosines >= cosine, 1))
    return {tuple(pair): cosines[tuple(pair)] for pair in pairs.tolist()}


def find_copies(folder, output, cosine=0.96, keep="first", parts=3, column="", by=None):
    """All four steps, as the workflow takes them."""
    run, by = open_run(folder), by or CpuSearch()
    with (output / "plan.npz").open("wb") as file:
        make_plan(run, column).write(file)
    made = read_plan(output / "plan.npz")
    files = []
    for part in range(parts):
        paths = output / f"{part}.rows", output / f"{part}.offsets.npy"
        mine = {shard: run.find_file(shard) for shard in choose_part(made.shards, part, parts)}
        with paths[0].open("wb") as rows, paths[1].open("wb") as offsets:
            assign(made, mine, cosine, by, rows, offsets)
        files.append(paths)
    pairs = []
    for part in range(parts):
        chosen = choose_part(range(len(made.centres)), part, parts)
        found, compared = compare(AssignedRows(files, made.centres.shape[1]), chosen, cosine, by)
        pairs.append(output / f"{part}.pairs.npz")
        np.savez(pairs[-1], pairs=found, compared=compared)
    return list_near_copies(run, made, pairs, cosine, keep, output / "near_copies.parquet")


def number_pairs(table, starts):
    """The pairs by the number of their rows in the run, with their cosines."""
    rows = zip(
        *(table[name].to_pylist() for name in ("shard", "key", "other_shard", "other_key", "cosine")), strict=True
    )
    return {(starts[a] + int(b), starts[c] + int(d)): cosine for a, b, c, d, cosine in rows}


@pytest.mark.parametrize(
    ("dtype", "by"), [("float32", CpuSearch()), ("float16", CpuSearch()), ("float32", GpuSearch("cpu"))]
)
def test_the_pairs_are_those_of_brute_force(dtype, by, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MIN_ROWS_PER_CLUSTER", 50)
    monkeypatch.setattr(clusters, "BYTES_PER_CHUNK", 4 * 16 * 300)
    monkeypatch.setattr(clusters, "BYTES_PER_BLOCK", 4 * 16 * 40)
    vectors = make_vectors(4000, 16, 500)
    rows = {"a": 900, "b": 0, "c": 2100, "d": 1000}
    parts = dict(zip(rows, np.split(vectors, np.cumsum(list(rows.values()))[:-1]), strict=True))
    make_run(tmp_path / "results", rows, dtype=dtype, vectors=parts | {"b": np.empty((0, 16))})
    counts = find_copies(tmp_path / "results", tmp_path, by=by)
    table, stored = read_near_copies(tmp_path / "near_copies.parquet")
    found = number_pairs(table, open_run(tmp_path / "results").starts)
    truth = find_by_force(vectors.astype(dtype), 0.96)
    assert len(truth) > 300
    assert len(found) == table.num_rows  # each once
    # A pair of which neither is near enough to the other's home may be missed, and no other is there.
    assert not {pair for pair in found.keys() - truth.keys() if found[pair] < 0.96 - 1e-5}
    assert len(found.keys() & truth.keys()) >= 0.99 * len(truth)
    assert all(abs(found[pair] - truth[pair]) < 1e-5 for pair in found.keys() & truth.keys())
    assert (counts.compared, counts.rows, counts.pairs) == (4000, rows, len(found))
    assert stored == counts
    assert read_plan(tmp_path / "plan.npz").centres.shape == (80, 16)


@pytest.mark.parametrize(("column", "chosen"), [("", 0), ("last", 1)])
def test_the_column_is_the_named_one_or_the_first_with_one_vector_per_image(tmp_path, column, chosen):
    shapes = {"tokens": (2, 8), "first": (8,), "last": (8,)}
    vectors = [make_vectors(300, 8, 100, seed) for seed in range(2)]
    both = np.concatenate([np.ones((300, 16)), *vectors], axis=1)
    make_run(tmp_path / "results", {"a": 300}, vectors={"a": both}, shapes=shapes, dtype="int8")
    counts = find_copies(tmp_path / "results", tmp_path, column=column)
    table, stored = read_near_copies(tmp_path / "near_copies.parquet")
    assert (stored.column, counts.column) == (column, column)
    truth = find_by_force(round_vectors(vectors[chosen].astype(np.float32), "int8"), 0.96)
    assert len(truth) > 50
    assert number_pairs(table, {"a": 0}).keys() == truth.keys()
    for wrong, message in [
        ("other", "no column of vectors 'other'; expected one of: 2 x 8"),
        ("tokens", "'tokens' has"),
    ]:
        with pytest.raises(ConfigError, match=f"near_copies in .*results.*: .*{message}"):
            make_plan(open_run(tmp_path / "results"), wrong)
    settings = {"cosine": 0.96, "keep": "first", "column": column}
    made_from = open_run(tmp_path / "results").made_from
    for known in ("", made_from):
        assert not is_stale(tmp_path / "near_copies.parquet", settings, ["a"], known)
    assert is_stale(tmp_path / "near_copies.parquet", settings, ["a"], "other vectors")
    assert is_stale(tmp_path / "near_copies.parquet", settings | {"column": "x"}, ["a"], made_from)
    assert name_search(settings, ["a"]) != name_search(settings | {"column": "x"}, ["a"])


def test_a_small_run_is_compared_each_with_each(tmp_path):
    vectors = make_vectors(300, 8, 100)
    make_run(tmp_path / "results", {"a": 200, "b": 100}, vectors={"a": vectors[:200], "b": vectors[200:]})
    find_copies(tmp_path / "results", tmp_path)
    table, _ = read_near_copies(tmp_path / "near_copies.parquet")
    assert number_pairs(table, {"a": 0, "b": 200}).keys() == find_by_force(vectors, 0.96).keys()


def test_a_group_is_what_hangs_together_and_has_one_image_to_keep(tmp_path):
    angles = np.radians([0, 10, 20, 90, 100, 200])  # cos 10 degrees is 0.985, cos 20 degrees 0.940
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sizes = {0: (10, 10), 1: (30, 20), 2: (20, 30), 3: (None, None), 4: (5, 5)}

    def read_size(shard, number):
        width, height = sizes.get(number, (1, 1))
        return {"width": width, "height": height}

    options = {"vectors": {"a": vectors}, "columns": {"width": "int64", "height": "int64"}, "fields": read_size}
    make_run(tmp_path / "results", {"a": 6}, **options)
    for keep, kept in (("first", {0, 3}), ("largest", {1, 4})):
        counts = find_copies(tmp_path / "results", tmp_path, keep=keep)
        table, _ = read_near_copies(tmp_path / "near_copies.parquet")
        rows = table.to_pylist()
        pairs = [(int(row["key"]), int(row["other_key"]), row["group"]) for row in rows]
        assert pairs == [(0, 1, 0), (1, 2, 0), (3, 4, 1)]
        marks = {int(row["key"]): row["keep"] for row in rows} | {
            int(row["other_key"]): row["other_keep"] for row in rows
        }
        assert {number for number, is_kept in marks.items() if is_kept} == kept
        assert (counts.groups, counts.images) == (2, 5)
        assert "5 of 6 images are near copies" in counts.describe()


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_a_gpu_finds_what_the_cpu_finds(rows, monkeypatch):
    monkeypatch.setattr(gpu_search, "_CELLS", 5000)  # 25 queries at once
    vectors = normalize(make_vectors(500, 16, 200))[0]
    queries, block = vectors[:rows], vectors[300:]
    cosines, nearest = GpuSearch("cpu").find_nearest(queries, block, 3)
    expected_cosines, expected = CpuSearch().find_nearest(queries, block, 3)
    assert (nearest == expected).all()
    assert np.allclose(cosines, expected_cosines, atol=1e-6)
    found, wanted = (
        {(query, row): cosine for query, row, cosine in zip(*by.find_near(queries, block, 0.9), strict=True)}
        for by in (GpuSearch("cpu"), CpuSearch())
    )
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=1e-6)
    assert len(found) > 200 or rows < 300


@pytest.mark.parametrize("by", [CpuSearch(), GpuSearch("cpu")])
def test_a_picture_in_very_many_copies_is_one_group_in_bounded_pairs(by, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MAX_PER_ROW", 64)
    vectors = np.ones((1500, 4))
    make_run(tmp_path / "results", {"a": 1500}, vectors={"a": vectors})
    counts = find_copies(tmp_path / "results", tmp_path, cosine=1.0, by=by)
    assert (counts.groups, counts.images) == (1, 1500)
    assert counts.pairs <= 1500 * search.MAX_PER_ROW


def test_vectors_without_a_direction_are_copies_of_nothing_and_counted(tmp_path):
    vectors = make_vectors(60, 8, 0)
    vectors[[3, 4]] = 0
    vectors[[5, 6]] = np.nan
    vectors[7] = vectors[8]
    make_run(tmp_path / "results", {"a": 60}, vectors={"a": vectors})
    counts = find_copies(tmp_path / "results", tmp_path, parts=1)
    table, _ = read_near_copies(tmp_path / "near_copies.parquet")
    assert table["key"].to_pylist() == ["00007"]
    assert counts.compared == 56


def test_a_run_without_rows_or_without_copies_has_an_empty_list(tmp_path):
    for name, rows, vectors in (("none", 0, np.empty((0, 4))), ("some", 3, np.eye(3, 4))):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name / "results", {"a": rows}, vectors={"a": vectors})
        counts = find_copies(tmp_path / name / "results", tmp_path / name)
        table, _ = read_near_copies(tmp_path / name / "near_copies.parquet")
        assert (table.num_rows, counts.compared) == (0, rows)
        assert counts.describe() == f"no near copies among {rows} images (a cosine of 0.96 or more)"


def test_the_same_run_gives_the_same_list(tmp_path):
    make_run(tmp_path / "results", {"a": 500}, vectors={"a": make_vectors(500, 8, 100)})
    lists = []
    for _ in range(2):
        find_copies(tmp_path / "results", tmp_path)
        lists.append((tmp_path / "near_copies.parquet").read_bytes())
    assert lists[0] == lists[1]


def test_the_list_has_a_page_index_and_says_what_it_is_of(tmp_path):
    make_run(tmp_path / "results", {"a": 300}, vectors={"a": make_vectors(300, 8, 100)})
    find_copies(tmp_path / "results", tmp_path)
    metadata = pq.read_metadata(tmp_path / "near_copies.parquet")
    assert metadata.row_group(0).column(0).has_offset_index
    (tmp_path / "near_copies.parquet").write_bytes(b"no parquet")
    with pytest.raises(ShardError, match="expected the list of near copies"):
        read_near_copies(tmp_path / "near_copies.parquet")


def test_the_work_is_divided_into_parts_that_hold_everything_once():
    assert [count_parts(shards) for shards in (1, 16, 17, 4096, 100_000)] == [1, 1, 2, 256, 256]
    for items, parts in ((7, 3), (2, 5), (1000, 63)):
        divided = [choose_part(range(items), part, parts) for part in range(parts)]
        assert [item for part in divided for item in part] == list(range(items))


def test_a_step_on_a_gpu_leases_it_and_a_gpu_that_fails_is_one_line(world, tmp_path):
    world.write(describe("GPU-a"))
    make_run(tmp_path / "results", {"a": 30})
    assert run_cli("near-copies", "plan", tmp_path / "results", tmp_path / "plan.npz").returncode == 0
    options = ("--part", 0, 1, "--cosine", 0.9)
    outputs = (tmp_path / "0.rows", tmp_path / "0.offsets.npy")
    step = ("near-copies", "assign", tmp_path / "results", tmp_path / "plan.npz", *outputs, *options)
    done = run_cli(*step, env=world.env)
    leased, error = done.stderr.splitlines()
    assert done.returncode == 1
    assert "leased GPU 0 GPU-a" in leased
    assert error.startswith("error: near_copies: GPU GPU-a failed: RuntimeError: ")  # torch sees through the fake
    assert not any(path.exists() for path in outputs)
    assert run_cli(*step, "--device", "cpu", env=world.env).returncode == 0
    assert all(path.exists() for path in outputs)


def test_what_is_refused_is_one_line(tmp_path):
    config = {"near_copies": {"cosine": 0.9, "keep": "largest"}, "metadata_columns": ["width"]}
    with pytest.raises(ConfigError, match="metadata_columns has no height; expected both"):
        check_settings(config)
    check_settings(config | {"metadata_columns": ["width", "height"]})
    check_settings(config | {"near_copies": {"cosine": 0, "keep": "largest"}})
    make_run(tmp_path / "results", {"a": 3})
    code = "import sys; sys.modules['faiss'] = None; from embedders.cli import main; main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        code,
        "near-copies",
        "plan",
        str(tmp_path / "results"),
        str(tmp_path / "plan.npz"),
    ]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: near_copies: it needs faiss, which is not installed")
    make_run(tmp_path / "results", {"b": 3}, weights_sha256="other")
    (tmp_path / "results/run_shards.json").write_text(json.dumps({"a": "a.tar", "b": "b.tar"}))
    done = run_cli("near-copies", "plan", tmp_path / "results", tmp_path / "plan.npz")
    assert "expected the vectors of one model" in done.stderr
    assert len(done.stderr.splitlines()) == 1
