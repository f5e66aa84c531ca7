"""`inspect` and `verify`: what a footer says, that sound outputs are called sound, and that no altered one is."""

import hashlib
import json
import os
import random
import shutil
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
import torchvision
from click.testing import CliRunner
from support.tools import MEAN_COLOR, make_image, make_shard, make_tar, run_cli

import embedders
from embedders import embed_shard
from embedders.cli import main
from embedders.job.locate import build_embedder

EMBEDDER = """
import json, tarfile
import torch
import torchvision
from embedders import ImageEmbedder

class Linear(ImageEmbedder):
    def __init__(self, weights, scale=1.0):
        super().__init__("linear")
        self.weights, self.scale = weights, scale

    def load_embedding_model(self, device):
        self.layer = torch.nn.Linear(3, 5)
        self.layer.load_state_dict(torch.load(self.weights, weights_only=True))
        layer, scale = self.layer, self.scale
        return lambda batch: layer(batch.mean(dim=(2, 3))) * scale

    def describe_preprocessing(self):
        return super().describe_preprocessing() | {"size": (224, 224)}

class OwnLoader(Linear):
    def load_dataset_shard(self, tar_path):
        with tarfile.open(tar_path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name, content in files.items():
            if name.endswith(".jpg"):
                yield self.decode(content).unsqueeze(0), [json.loads(files[name.replace(".jpg", ".json")])]
"""


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    # A run on the CPU hides the GPUs from its own process, which here is pytest's.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "linear.py").write_text(EMBEDDER)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(3, 5).state_dict(), tmp_path / "weights.pth")
    make_shard(tmp_path / "s.tar", 12)
    return tmp_path


def embed(folder, class_name="Linear", shard="s", only=None, args=None, **options):
    """Embed a shard of the folder; with a ledger, and with two failed samples allowed."""
    args = {"weights": f"{folder}/weights.pth"} | (args or {})
    embedder = build_embedder(f"{folder}/linear.py:{class_name}", args)
    options = {"ledger_path": folder / f"{shard}.ledger", "max_failed_fraction": 0.5} | options
    embed_shard(embedder, folder / f"{shard}.tar", folder / f"{shard}.parquet", only=only, device="cpu", **options)
    return folder / f"{shard}.parquet"


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments), "--device", "cpu"])


def assert_sound(*arguments):
    result = verify(*arguments)
    assert result.exit_code == 0, result.output
    assert all(line.startswith("sound: ") for line in result.stdout.splitlines()), result.output
    return result.stdout


def assert_wrong(words, *arguments):
    result = verify(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].endswith("files are not sound; expected none; make them again")
    assert all(line.startswith("wrong: ") for line in result.stdout.splitlines()), result.output
    assert words in result.stdout, result.stdout


def damaged_members():
    return {
        "0.jpg": make_image(0),
        "bad.jpg": b"broken",
        "1.jpg": make_image(1),
        "LICENSE": b"",
        "2.jpg": make_image(2),
    }


# What the footer says.


def test_inspect_shows_all_that_made_the_vectors(folder):
    make_tar(folder / "s.tar", damaged_members())
    job = run_cli("inspect", embed(folder))
    assert job.returncode == 0, job.stderr
    said = json.loads(job.stdout)
    made, seconds, usage = said.pop("embedder"), said.pop("seconds"), said.pop("usage")
    assert {"waiting_for_images", "model", "writing", "reading", "decoding"} <= set(seconds)
    assert usage["cpu_seconds"] > 0 and usage["peak_memory_bytes"] > 100 << 20 and usage["gpu_seconds"] == 0
    content = (folder / "s.tar").read_bytes()
    assert said.pop("shard") == {
        "name": "s", "path": f"{folder}/s.tar", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    assert said == {
        "file": f"{folder}/s.parquet", "rows": 3, "dimension": 5, "vectors": said["vectors"], "schema_version": 2,
        "vector_column": "image_embedding", "classifiers": [],
        "max_batch_size": None, "embedding_dtype": "float32", "id_col": "__key__", "image_suffix": "",
        "ledger": f"{folder}/s.ledger",
        "null_columns": [], "remarks": {}, "recipe": None, "retried_sha256": None,
        "is_retry": False, "samples": 5, "embedded": 3, "failed": {"undecodable": 1, "bad_name": 1},
    }  # fmt: skip
    source = hashlib.sha256((folder / "linear.py").read_bytes()).hexdigest()
    assert made["class"] == f"{folder}/linear.py:Linear"
    assert made["args"] == {"weights": f"{folder}/weights.pth"}
    assert (made["model_name"], made["device"], made["source_sha256"]) == ("linear", "cpu", source)
    assert len(made["weights_sha256"]) == 64
    assert made["preprocessing"] == {"background": "white", "size": [224, 224]}
    assert made["versions"].items() >= {
        "tarquet": embedders.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
        "simplejpeg": simplejpeg.__version__,
    }.items()  # fmt: skip


def test_the_preprocessing_and_version_of_timm_are_said_too(folder):
    path = folder / "o.parquet"
    embed_shard(build_embedder("embedders:TimmImageEmbedder", {"model_name": "test_vit"}), folder / "s.tar", path)
    made = json.loads(CliRunner().invoke(main, ["inspect", str(path)]).output)["embedder"]
    assert made["versions"]["timm"] == version("timm")
    assert made["preprocessing"].keys() >= {"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}


@pytest.mark.parametrize("content", [b"", b"PAR1 no Parquet PAR1", None])
def test_inspecting_what_is_no_output_is_one_line(tmp_path, content):
    path = tmp_path / "x.parquet"
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    for command in ("inspect", "verify"):
        result = CliRunner().invoke(main, [command, str(path)])
        assert result.exit_code == 1
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "expected" in result.output


# Sound outputs are called sound.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_sound_output_is_called_sound(folder, dtype):
    make_tar(folder / "s.tar", damaged_members())
    said = assert_sound(embed(folder, embedding_dtype=dtype))
    assert said == f"sound: {folder}/s.parquet: 3 rows, 2 failed, 3 embedded again\n"


@pytest.mark.slow
def test_it_runs_as_a_process_and_takes_several_files(folder):
    shutil.copy(folder / "s.tar", folder / "t.tar")
    job = run_cli("verify", embed(folder), embed(folder, shard="t"), "--sample", 4, "--device", "cpu")
    assert (job.returncode, job.stdout.count("sound: "), job.stdout.count("4 embedded again")) == (0, 2, 2), (
        job.stderr
    )


def test_odd_but_sound_outputs_are_called_sound(folder):
    members = damaged_members()
    make_tar(folder / "empty.tar", {})
    make_tar(folder / "failed.tar", members)
    (folder / "cut.tar").write_bytes((folder / "s.tar").read_bytes()[:9000])
    make_tar(folder / "twice.tar", [("1.jpg", make_image(1)), ("2.jpg", make_image(2)), ("1.jpg", make_image(3))])
    assert_sound(embed(folder, shard="empty"))
    assert_sound(embed(folder, shard="twice"))
    assert_sound(embed(folder, shard="cut", accept_damaged_shards=True, max_failed_fraction=1))
    assert_sound(embed(folder, shard="failed", ledger_path=None))
    assert_sound(embed(folder, shard="failed", only={"bad", "0"}))


def test_a_loader_of_ones_own_is_verified_by_its_ids(folder):
    path = embed(folder, "OwnLoader", id_col="id")
    assert pq.read_table(path)["key"].to_pylist()[0] == "00000"
    assert_sound(path)


def test_an_output_whose_id_is_a_field_called_key_is_verified(folder):
    members = {f"{n}.jpg": make_image(n) for n in range(3)} | {f"{n}.json": {"key": f"own-{n}"} for n in range(3)}
    make_tar(folder / "s.tar", dict(sorted(members.items())))
    path = embed(folder, id_col="key")
    assert pq.read_table(path)["key"].to_pylist() == ["own-0", "own-1", "own-2"]
    assert_sound(path)
    rewrite(path, lambda table: table.slice(1))
    assert_wrong("1 samples of the tar are neither embedded nor failed, for example '0'", path)


def test_row_groups_without_a_chosen_row_are_read_too(folder):
    path = embed(folder)
    assert ": 12 rows, 0 failed, 0 embedded again" in assert_sound(path, "--sample", 0)
    rewrite(path, lambda table: table, row_group_size=1)
    assert pq.read_metadata(path).num_row_groups == 12
    assert ": 12 rows, 0 failed, 2 embedded again" in assert_sound(path, "--sample", 2)


def test_a_shard_and_a_ledger_that_moved_are_named(folder):
    path = embed(folder)
    (folder / "s.tar").rename(folder / "moved.tar")
    assert_wrong("its shard", path)
    assert_wrong("is not there", path)
    assert_wrong("run snakemake, or name it with --shard", path)
    assert_sound(path, "--shard", folder / "moved.tar")
    (folder / "s.ledger").rename(folder / "moved.ledger")
    assert_wrong("no such file", path, "--shard", folder / "moved.tar")
    assert_sound(path, "--shard", folder / "moved.tar", "--ledger", folder / "moved.ledger")


# Altered ones are not.


def rewrite(path, change, **options):
    """Change the rows of a file, and keep its footer."""
    said = pq.read_metadata(path).metadata[b"tarquet"]
    pq.write_table(change(pq.read_table(path)).replace_schema_metadata({b"tarquet": said}), path, **options)


def change_vectors(change):
    def apply(table):
        column = table.column(table.num_columns - 1).combine_chunks()
        values = change(column.flatten().to_numpy().reshape(len(table), -1).copy())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=column.type)
        return table.set_column(table.num_columns - 1, table.schema.field(-1), vectors)

    return apply


def put(row, value):
    def change(vectors):
        vectors[row] = value
        return vectors

    return change_vectors(change)


def rename_key(table):
    keys = table["key"].to_pylist()
    return table.set_column(1, table.schema.field("key"), pa.array(["other", *keys[1:]]))


def swap_shard(folder):
    members = {f"{n:05d}.jpg": make_image(n + 1) for n in range(12)}
    make_tar(folder / "s.tar", members)


def alter_weights(folder):
    weights = torch.load(folder / "weights.pth")
    weights["bias"][0] += 1e-4
    torch.save(weights, folder / "weights.pth")


def edit_footer(path, **changes):
    said = json.loads(pq.read_metadata(path).metadata[b"tarquet"]) | changes
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"tarquet": json.dumps(said)}), path)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


ALTERED = {
    "altered weights": (alter_weights, "the weights of linear differ from those that it was made with"),
    "a swapped shard, with the same names": (swap_shard, "is not the shard that it was made from"),
    "a truncated Parquet": (lambda folder: cut(folder / "s.parquet", -1), "cannot be read"),
    "half a Parquet": (lambda folder: cut(folder / "s.parquet", 1500), "cannot be read"),
    "a truncated ledger": (lambda folder: cut(folder / "s.ledger", -100), "cannot be read"),
    "a ledger that is none": (
        lambda folder: shutil.copy(folder / "s.parquet", folder / "s.ledger"),
        "expected a ledger of tarquet",
    ),
    "a row removed": (
        lambda folder: rewrite(folder / "s.parquet", lambda table: table.slice(1)),
        "2 rows, but its footer says 3",
    ),
    "a row twice": (
        lambda folder: rewrite(folder / "s.parquet", lambda table: pa.concat_tables([table, table.slice(2)])),
        "1 samples are not in the tar, or appear twice, for example '2'",
    ),
    "a row for another": (
        lambda folder: rewrite(
            folder / "s.parquet", lambda table: pa.concat_tables([table.slice(1), table.slice(2)])
        ),
        "1 samples of the tar are neither embedded nor failed, for example '0'",
    ),
    "a row renamed": (
        lambda folder: rewrite(folder / "s.parquet", rename_key),
        "1 samples are not in the tar, or appear twice, for example 'other'",
    ),
    "a row of another shard": (
        lambda folder: rewrite(
            folder / "s.parquet", lambda table: table.set_column(0, table.schema.field("shard"), [["s", "t", "s"]])
        ),
        "its column 'shard' has 't', but its footer says 's'",
    ),
    "vectors in another order": (
        lambda folder: rewrite(folder / "s.parquet", change_vectors(lambda vectors: vectors[::-1])),
        "sample '0': cosine",
    ),
    "one vector changed": (
        lambda folder: rewrite(folder / "s.parquet", put(1, [1, 2, 3, 4, 5])),
        "sample '1': cosine",
    ),
    "one vector twice as long": (
        lambda folder: rewrite(
            folder / "s.parquet", change_vectors(lambda vectors: vectors * np.array([[1], [1], [2]], "f"))
        ),
        "sample '2': cosine 1.00000 between its vector and a new one, ratio of their norms 0.50000",
    ),
    "a vector of NaN": (lambda folder: rewrite(folder / "s.parquet", put(1, np.nan)), "sample '1': cosine nan"),
    "a vector of zeros": (lambda folder: rewrite(folder / "s.parquet", put(1, 0)), "sample '1': cosine 0.0"),
    "a failed sample removed": (
        lambda folder: rewrite(folder / "s.ledger", lambda table: table.slice(1)),
        "1 samples in its ledger, but its footer says 2",
    ),
    "a failed sample removed, which is then lost": (
        lambda folder: rewrite(folder / "s.ledger", lambda table: table.slice(1)),
        "1 samples of the tar are neither embedded nor failed, for example 'LICENSE'",
    ),
    "a failed sample added": (
        lambda folder: rewrite(folder / "s.ledger", lambda table: pa.concat_tables([table, table.slice(1)])),
        "1 samples are not in the tar, or appear twice, for example 'bad'",
    ),
    "another footer": (
        lambda folder: edit_footer(folder / "s.parquet", schema_version=99),
        "its footer has the version 99",
    ),
    "other counts in the footer": (
        lambda folder: edit_footer(folder / "s.parquet", embedded=4),
        "3 rows, but its footer says 4",
    ),
    "another scale in the source": (
        lambda folder: (folder / "linear.py").write_text(EMBEDDER.replace("* scale", "* scale + 1")),
        "changed since: source_sha256",
    ),
    "a class that is gone": (lambda folder: (folder / "linear.py").unlink(), "there is no file"),
    "a decoder that fails": (
        lambda folder: (folder / "linear.py").write_text(EMBEDDER + "Linear.decode = lambda self, encoded: 1 / 0\n"),
        "sample '0' can no longer be embedded (changed since: source_sha256)",
    ),
}


@pytest.mark.parametrize("alteration", ALTERED)
def test_what_was_altered_is_called_wrong(folder, alteration):
    make_tar(folder / "s.tar", damaged_members())
    path = embed(folder)
    assert_sound(path)
    change, words = ALTERED[alteration]
    change(folder)
    assert_wrong(words, path)


def test_a_sound_file_beside_a_wrong_one_is_still_called_sound(folder):
    shutil.copy(folder / "s.tar", folder / "t.tar")
    sound, wrong = embed(folder), embed(folder, shard="t")
    rewrite(wrong, lambda table: table.slice(1))
    result = verify(wrong, sound)
    assert result.exit_code == 1
    assert f"sound: {sound}" in result.stdout
    assert f"wrong: {wrong}" in result.stdout
    assert "error: 1 of 2 files are not sound" in result.stderr


def test_an_output_that_python_made_without_a_class_path_says_so(folder):
    locate = build_embedder(MEAN_COLOR, {})
    locate.recipe = None
    embed_shard(locate, folder / "s.tar", folder / "p.parquet", device="cpu")
    assert_wrong("was built in Python, and its arguments are not in the footer", folder / "p.parquet")


def test_a_flipped_byte_in_the_pages_is_found_without_embedding_again(folder):
    path = embed(folder)
    content, whole = path.read_bytes(), pq.read_table(path)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    chance, found = random.Random(0), 0
    for _ in range(60):
        place = chance.randrange(4, footer)
        path.write_bytes(content[:place] + bytes([content[place] ^ chance.randrange(1, 256)]) + content[place + 1 :])
        result = verify(path, "--sample", 0)
        found += result.exit_code
        assert result.exit_code == 1 or pq.read_table(path).equals(whole), place
    print(f"{found} of 60 flipped bytes found; the others change nothing that is read")
    assert found > 40


@pytest.mark.slow
def test_a_program_gets_the_verdicts_as_json(tmp_path):
    make_shard(tmp_path / "s.tar", 3)
    assert run_cli("embed", tmp_path / "s.tar", tmp_path / "o.parquet", "--embedder", MEAN_COLOR).returncode == 0
    job = run_cli("verify", tmp_path / "o.parquet", tmp_path / "s.tar", "--json", "--device", "cpu")
    assert job.returncode == 1
    sound, wrong = json.loads(job.stdout)
    counts = {"rows": 3, "failed": 0, "embedded_again": 3}
    assert sound == {"file": f"{tmp_path}/o.parquet", **counts, "is_sound": True, "wrong": []}
    assert (wrong["file"], wrong["is_sound"], len(wrong["wrong"])) == (f"{tmp_path}/s.tar", False, 1)


# Several files.


def test_files_of_one_model_share_it_and_files_of_another_do_not(folder, caplog):
    caplog.set_level("INFO")
    made = []
    for shard, args in (("a", {}), ("b", {}), ("c", {"scale": 2}), ("d", {})):
        make_shard(folder / f"{shard}.tar", 3)
        made.append(embed(folder, shard=shard, args=args))
    caplog.clear()
    assert_sound(*made)
    assert [message.split()[1] for message in caplog.messages if message.startswith("loaded")] == ["linear"] * 3


# Folders.


@pytest.fixture
def run(folder):
    """The folder of a run of two shards, one of them in a folder of its own, with a retry."""
    results = folder / "results"
    for name in ("s", "val/t"):
        make_tar(folder / f"{name.replace('/', '-')}.tar", {"0.jpg": make_image(1), "1.jpg": b"no image"})
        paths = {"embeddings": "parquet_path", "ledger": "ledger_path"}
        for place in (results, results / "retried")[: 1 + (name == "s")]:
            embedder = build_embedder(f"{folder}/linear.py:Linear", {"weights": f"{folder}/weights.pth"})
            only = {"1"} if place.name == "retried" else None
            arguments = {key: place / f"{kind}/{name}.parquet" for kind, key in paths.items()}
            options = {"max_failed_fraction": 1.0, "only": only, "device": "cpu"}
            embed_shard(embedder, folder / f"{name.replace('/', '-')}.tar", **arguments, **options)
    (results / "run_shards.json").write_text(json.dumps({"s": "s.tar", "val/t": "val-t.tar"}))
    return results


def test_a_folder_is_taken_as_the_run_in_it_and_all_its_outputs_are_verified(run, tmp_path, monkeypatch):
    result = verify(run)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("sound")]
    names = ["embeddings/s", "embeddings/val/t", "retried/embeddings/s"]
    assert [line.partition(": 1 rows")[0].partition(": 0 rows")[0] for line in lines] == [
        f"sound: {run}/{name}.parquet" for name in names
    ]
    (run / "embeddings/val/t.parquet").unlink()
    result = verify(run)
    assert result.exit_code == 1
    assert f"wrong: {run}/embeddings/val/t.parquet: " in result.output
    assert "error: 1 of 3 files are not sound" in result.output


def test_the_shards_of_a_run_are_read_from_where_its_last_run_found_them(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "moved").mkdir()
    for name in ("s", "val-t"):
        (folder / f"{name}.tar").rename(folder / f"moved/{name}.tar")
    (run / "run_shards.json").write_text(json.dumps({"s": "moved/s.tar", "val/t": "moved/val-t.tar"}))
    result = verify(run)
    assert result.exit_code == 0, result.output
    assert result.output.count("sound: ") == 3


def test_a_list_of_shards_that_cannot_be_read_is_one_line(run):
    (run / "run_shards.json").write_text('{"s": ')
    job = run_cli("verify", run)
    assert (job.returncode, job.stdout) == (1, "")
    assert "run_shards.json' cannot be read (" in job.stderr and job.stderr.count("\n") == 1


def test_a_folder_of_outputs_alone_is_verified_too(run):
    result = verify(run / "embeddings")
    assert result.exit_code == 0, result.output
    assert result.output.count("sound: ") == 2


@pytest.mark.parametrize(
    ("path", "words"),
    [("empty", "there is no output in this folder"), ("none", "there is no such file or folder")],
)
def test_a_path_that_means_no_output_is_one_line(tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    job = run_cli("verify", tmp_path / path)
    assert (job.returncode, job.stdout) == (1, "")
    assert words in job.stderr and job.stderr.count("\n") == 1


def test_shard_and_ledger_go_with_one_output(run, folder):
    result = verify(run, "--shard", folder / "s.tar")
    assert "--shard and --ledger need exactly one file; 3 were given" in result.output
