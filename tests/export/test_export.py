"""`export`: each format row by row through the reader's own library; stopped, repeated and refused exports."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import faiss
import lancedb
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.results import make_run
from support.tools import clean_environment, leftovers, run_cli

from embedders.errors import ConfigError, OutputError, ShardError
from embedders.export import target
from embedders.export.export import export_run, lock
from embedders.output.parquet import read_vectors
from embedders.output.run import open_run
from embedders.output.vectors import split_columns

FORMATS = ["npy", "lance", "huggingface"]
ROWS = {"a": 7, "deep/b": 0, "c": 12, "d": 5}


@pytest.fixture(params=["float32", "float16"])
def run(request, tmp_path):
    """A finished run, one of its shards empty; keys repeat over the shards, and a stranger's file lies there."""
    make_run(tmp_path / "results", ROWS, dtype=request.param)
    make_run(tmp_path / "other", {"stranger": 3})
    (tmp_path / "other/embeddings/stranger.parquet").rename(tmp_path / "results/embeddings/stranger.parquet")
    return tmp_path / "results"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(target, "BYTES_PER_PART", 1)


def read_truth(folder):
    """Names and vectors by pyarrow's plain reader, file by file."""
    names, vectors = [], []
    for shard in ROWS:
        table = pq.read_table(folder / f"embeddings/{shard}.parquet")
        names += [(shard, key) for key in table["key"].to_pylist()]
        vectors += table["v"].to_pylist()
    return names, np.array(vectors)


def read_export(form, folder):
    if form == "npy":
        frame = pq.read_table(folder / "keys.parquet")
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    elif form == "lance":
        frame = lancedb.connect(folder).open_table("embeddings").to_arrow()
        vectors = np.stack(frame["v"].to_numpy())
    else:
        frame = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
        vectors = frame.with_format("numpy")["v"][:]
    return list(zip(frame["shard"][:], frame["key"][:], strict=True)), vectors


def name(values):
    return [tuple(map(str, value)) for value in values]


@pytest.mark.parametrize("form", FORMATS)
def test_every_row_is_there_in_order_with_its_vector(form, run, tmp_path):
    done = run_cli("export", run, tmp_path / "out", "--to", form)
    assert done.returncode == 0, done.stderr
    assert "24 vectors of 5 dimensions" in done.stdout
    names, vectors = read_truth(run)
    exported, got = read_export(form, tmp_path / "out")
    assert name(exported) == names
    assert np.array_equal(np.asarray(got, np.float64), vectors)
    if form == "npy":
        assert got.dtype == open_run(run).columns["v"].dtype
        assert pq.read_schema(tmp_path / "out/keys.parquet").names == ["shard", "key"]
    assert not [path for path in leftovers(tmp_path) if ".partial" in path or ".export" in path]


COLUMNS = {"one": (5,), "a b": (2, 3)}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.usefixtures("small_parts")
def test_all_the_columns_of_vectors_are_exported_int8_as_float32(form, dtype, tmp_path):
    make_run(tmp_path / "results", ROWS, dtype=dtype, shapes=COLUMNS)
    done = run_cli("export", tmp_path / "results", tmp_path / "out", "--to", form)
    assert done.returncode == 0, done.stderr
    assert "24 images with vectors of 5 (one), 2 x 3 (a b) dimensions, float32, from 4 shards" in done.stdout
    stored = [read_vectors(str(tmp_path / f"results/embeddings/{shard}.parquet"))[1] for shard in ROWS]
    truth = split_columns(np.concatenate(stored), COLUMNS)
    for column, expected in truth.items():
        if form == "npy":
            got = np.load(tmp_path / f"out/{column}.npy", mmap_mode="r")
            assert pq.read_schema(tmp_path / "out/keys.parquet").names == ["shard", "key"]
        elif form == "lance":
            values = lancedb.connect(tmp_path / "out").open_table("embeddings").to_arrow()[column].to_pylist()
            got = np.array(values, np.float32)
        else:
            frame = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
            assert frame.column_names == ["shard", "key", *COLUMNS]
            got = frame.with_format("numpy")[column][:]
        assert got.dtype == np.float32
        assert np.array_equal(got, expected)
    if form == "huggingface":
        card = (tmp_path / "out/README.md").read_text()
        assert "`one`: 24 vectors of 5 dimensions (float32), one for each image." in card
        assert "`a b`: 48 vectors of 3 dimensions (float32), 2 for each image." in card


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lancedb_reads_and_searches_images_of_many_vectors(dtype, tmp_path):
    make_run(tmp_path / "results", {"a": 20, "b": 3}, dtype=dtype, shapes={"tokens": (101, 64)})
    export_run(tmp_path / "results", "lance", tmp_path / "out")
    table = lancedb.connect(tmp_path / "out").open_table("embeddings")
    stored = [read_vectors(str(tmp_path / f"results/embeddings/{shard}.parquet"))[1] for shard in "ab"]
    truth = np.concatenate(stored).reshape(23, 101, 64)
    assert np.array_equal(np.array(table.to_arrow()["tokens"].to_pylist(), dtype), truth)
    found = table.search(truth[21], "tokens").distance_type("cosine").limit(1).to_list()
    assert (found[0]["shard"], found[0]["key"]) == ("b", "00001")


def test_chosen_columns_only_and_a_wrong_name_is_a_line(tmp_path):
    make_run(tmp_path / "results", ROWS, shapes=COLUMNS)
    done = run_cli("export", tmp_path / "results", tmp_path / "out", "--to", "npy", "--column", "a b")
    assert done.returncode == 0, done.stderr
    assert "24 images with 2 vectors each, of 3 dimensions, float32" in done.stdout
    assert leftovers(tmp_path / "out") == ["keys.parquet", "vectors.npy"]
    assert np.load(tmp_path / "out/vectors.npy").shape == (24, 2, 3)
    done = run_cli("export", tmp_path / "results", tmp_path / "more", "--to", "npy", "--column", "two")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("no column of vectors 'two'; expected one of: 5 (one), 2 x 3 (a b)")
    make_run(tmp_path / "results", ROWS, shapes={"a/b": (2,), "c": (2,)})
    with pytest.raises(ConfigError, match="column 'a/b' cannot name a file"):
        export_run(tmp_path / "results", "npy", tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_faiss_searches_the_array_as_it_is(tmp_path):
    make_run(tmp_path / "results", ROWS)
    export_run(tmp_path / "results", "npy", tmp_path / "out")
    vectors = np.load(tmp_path / "out/vectors.npy", mmap_mode="r")
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    assert index.search(vectors[20:21], 1)[1] == [[20]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_parts")
def test_one_that_was_stopped_goes_on_and_is_not_there_before_its_end(form, run, tmp_path, monkeypatch):
    broken = run / "embeddings/c.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:8] + b"x" * 32 + whole[40:])
    with pytest.raises(ShardError, match=r"c\.parquet"):
        export_run(run, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    restore(broken, whole, run)
    written = []
    monkeypatch.setattr(target.Target, "read", count_reads(target.Target.read, written))
    export_run(run, form, tmp_path / "out")
    assert written == [["deep/b", "c"], ["d"]]
    names, vectors = read_truth(run)
    exported, got = read_export(form, tmp_path / "out")
    assert name(exported) == names
    assert np.array_equal(np.asarray(got, np.float64), vectors)


def restore(path, content, run):
    """Put a file back with the times that it had, as a disk that answers again does."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def count_reads(read, written):
    def counted(self, part, schema):
        written.append(part.shards)
        return read(self, part, schema)

    return counted


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_parts")
def test_a_run_that_has_grown_is_exported_anew(form, run, tmp_path):
    broken = run / "embeddings/c.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:8] + b"x" * 32 + whole[40:])
    with pytest.raises(ShardError):
        export_run(run, form, tmp_path / "out")
    broken.write_bytes(whole)
    rows = ROWS | {"e": 3}
    make_run(run, rows, dtype=open_run(run).columns["v"].dtype)
    export_run(run, form, tmp_path / "out")
    exported, _ = read_export(form, tmp_path / "out")
    assert len(exported) == sum(rows.values())


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_line_and_more_room_lets_it_go_on(form, tmp_path):
    make_run(tmp_path / "results", {"a": 20_000})

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    done = run_cli("export", tmp_path / "results", tmp_path / "out", "--to", form, preexec_fn=limit)
    assert done.returncode == 1
    assert "cannot be written (" in done.stderr and "File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert run_cli("export", tmp_path / "results", tmp_path / "out", "--to", form).returncode == 0
    assert (tmp_path / "out").is_dir()


EXPORT = """
import signal
import sys
from embedders.cli import main
from embedders.export import export, target

record, last = export.record, int(sys.argv.pop())

def record_and_wait(partial, plan, done):
    record(partial, plan, done)
    if last and done == last:
        signal.pause()

export.record, target.BYTES_PER_PART = record_and_wait, 1
main(sys.argv[1:])
"""


def test_a_kill_leaves_nothing_under_the_name(tmp_path):
    make_run(tmp_path / "results", {f"s{n}": 500 for n in range(6)}, dimension=64)
    command = [sys.executable, "-c", EXPORT, "export", "results", "out", "--to", "npy"]
    held = subprocess.Popen([*command, "2"], cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    assert "500 of 3000 rows" in held.stderr.readline()
    held.send_signal(signal.SIGKILL)
    held.communicate()
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "0"], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert "parts were written by an earlier export" in done.stderr
    vectors = np.load(tmp_path / "out/vectors.npy")
    expected = [pq.read_table(path)["v"].to_pylist() for path in sorted(tmp_path.glob("results/embeddings/*"))]
    assert np.array_equal(vectors, np.concatenate(expected).astype(np.float32))


def test_what_cannot_be_exported_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="full' is not empty; expected a new folder"):
        export_run(run, "npy", tmp_path / "full")
    with pytest.raises(ConfigError, match=r"no readable run_shards\.json"):
        export_run(tmp_path / "full", "npy", tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        export_run(run, "npy", tmp_path / "full/file/out")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delitem(sys.modules, "embedders.export.lance", raising=False)
    with pytest.raises(ConfigError, match=r"needs lancedb.*pip install 'tarquet\[lance\]'"):
        export_run(run, "lance", tmp_path / "out")
    (run / "embeddings/d.parquet").unlink()
    with pytest.raises(ConfigError, match="1 of its 4 shards have no vectors, such as 'd'"):
        export_run(run, "npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights_sha256": "other"}, "its weights_sha256 is 'other', but None in"),
        ({"dtype": "float16"}, "its type of vectors is 'fixed_size_list"),
        ({"dimension": 6}, "its type of vectors is 'fixed_size_list"),
    ],
)
def test_vectors_of_two_models_are_refused(changed, message, tmp_path):
    make_run(tmp_path / "results", {"a": 3})
    make_run(tmp_path / "results", {"b": 3}, **changed)
    (tmp_path / "results/run_shards.json").write_text(json.dumps({"a": "a.tar", "b": "b.tar"}))
    with pytest.raises(ShardError, match=message):
        export_run(tmp_path / "results", "npy", tmp_path / "out")


def test_two_exports_into_one_folder_do_not_mix(tmp_path):
    make_run(tmp_path / "results", {"a": 3})
    (tmp_path / ".out.partial").mkdir()
    with lock(tmp_path / ".out.partial"), pytest.raises(ConfigError, match="another export is writing"):
        export_run(tmp_path / "results", "npy", tmp_path / "out")


def test_the_card_says_how_the_vectors_were_made(run, tmp_path):
    export_run(run, "huggingface", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for part in (
        'size_categories: ["n<1K"]',
        "24 vectors of 5 dimensions",
        "4 WebDataset shards",
        "background",
        "0" * 64,
    ):
        assert part in card, part
    (file,) = (tmp_path / "out/data").iterdir()
    columns = pq.read_metadata(file).row_group(0)
    assert all(columns.column(n).has_offset_index for n in range(columns.num_columns))
    assert Path(file).name == "train-00000-of-00001.parquet"
