import json
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import torch
from mean_color import MeanColor
from support.tools import clean_environment, leftovers, make_image, make_shard, make_tar, run_cli, start_python

from embedders import ImageEmbedder, embed_shard
from embedders.errors import ConfigError, EmbedderError, GpuError, GpuLostError, OutputError, ShardError
from embedders.output.files import PARTIAL
from embedders.output.footers import describe_file
from embedders.output.parquet import read_account, read_ledger, read_vectors
from embedders.output.summary import summarize_run


class Own(ImageEmbedder):
    """Has a loader of its own: what it yields is given by the test."""

    def __init__(self, batches=(), forward=None):
        super().__init__(model_name="own", image_embedding_column="image_embedding", classifiers=[])
        self.batches = batches
        self.forward = forward or (lambda batch: batch.float())

    def load_dataset_shard(self, tar_path):
        yield from self.batches

    def load_embedding_model(self, device):
        return self.forward


class Raising(MeanColor):
    """Its model fails at the second batch."""

    batch_size = 2
    calls = 0

    def load_embedding_model(self, device):
        def forward(batch):
            self.calls += 1
            return batch.mean(dim=(2, 3)) if self.calls == 1 else self.fail(batch)

        return forward


def rows_of(*keys):
    return [{"__key__": key} for key in keys]


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "s.tar", 7)


def embed(embedder, shard, tmp_path, **options):
    return embed_shard(embedder, shard, tmp_path / "out" / "s.parquet", **{"device": "cpu"} | options)


# A whole run.


def test_one_row_per_image_in_tar_order_and_a_ledger_that_adds_up(tmp_path, caplog):
    good = {f"{name}.jpg": make_image(n) for n, name in enumerate(["b", "a", "d/c", "z"])}
    path = make_tar(tmp_path / "s.tar", {"first.jpg": b"broken", **good, "LICENSE": b""})
    out = tmp_path / "out"
    ledger = embed(MeanColor(), path, tmp_path, ledger_path=out / "ledger.parquet", max_failed_fraction=0.5)
    table, vectors, described = read_vectors(str(out / "s.parquet"))
    provenance = described.provenance
    assert table["key"].to_pylist() == ["b", "a", "d/c", "z"]
    expected = [MeanColor().decode(content).mean(dim=(1, 2)).numpy() for content in good.values()]
    assert np.allclose(vectors, expected, atol=1e-6)
    assert (ledger.seen, ledger.embedded, len(ledger.failed)) == (6, 4, 2)
    assert {sample.key for sample in read_ledger(str(out / "ledger.parquet"))} == {"first", "LICENSE"}
    assert (provenance.samples, provenance.embedded) == (6, 4)
    assert provenance.failed == {"bad_name": 1, "undecodable": 1}
    assert leftovers(out) == ["ledger.parquet", "s.parquet"]


def test_two_runs_give_equal_bytes(tmp_path, shard):
    for name in "ab":
        embed_shard(MeanColor(), shard, tmp_path / name / "o.parquet", device="cpu", metadata_columns="all")
    assert (tmp_path / "a/o.parquet").read_bytes() == (tmp_path / "b/o.parquet").read_bytes()


def test_the_ledger_says_where_the_time_went(tmp_path, shard):
    class Slow(MeanColor):
        batch_size = 1

        def load_embedding_model(self, device):
            time.sleep(0.3)
            forward = super().load_embedding_model(device)
            return lambda batch: time.sleep(0.05) or forward(batch)

        def preprocess(self, image):
            time.sleep(0.01)
            return super().preprocess(image)

    start = time.perf_counter()
    embed(Slow(), shard, tmp_path, ledger_path=tmp_path / "ledger.parquet")
    seconds = read_account(str(tmp_path / "ledger.parquet"))[1]
    assert seconds["starting"] >= 0.3
    assert seconds["model"] >= 7 * 0.05
    assert seconds["decoding"] >= 7 * 0.01
    assert seconds["waiting_for_model"] > 0.1
    job_thread = sum(seconds[name] for name in ("waiting_for_images", "model", "writing", "hashing"))
    assert 7 * 0.05 <= job_thread < time.perf_counter() - start - 0.3


def test_what_decoders_say_of_embedded_images_is_counted_and_named(tmp_path, caplog):
    whole = make_image(0, quality=95)
    patched = whole[: len(whole) * 2 // 3] + b"\xff\xd9"
    members = {"1.jpg": whole, "2.jpg": patched, "3.jpg": whole[: len(whole) * 2 // 3], "4.jpg": patched}
    path = make_tar(tmp_path / "s.tar", members)
    output, ledger_path = tmp_path / "embeddings/s.parquet", tmp_path / "ledger/s.parquet"
    with caplog.at_level("INFO"):
        embed_shard(MeanColor(), path, output, ledger_path=ledger_path, device="cpu", max_failed_fraction=0.5)
    assert read_vectors(str(output))[0]["key"].to_pylist() == ["1", "2", "4"]
    assert describe_file(str(output)).provenance.remarks == {"patched": 2}
    assert f"{path}: '2': patched: a damaged JPEG, filled in by libjpeg: Corrupt JPEG data: premature" in caplog.text
    assert "4 samples, 3 embedded, 1 failed, 2 patched in" in caplog.text
    summary = summarize_run(tmp_path, ["s"])
    assert summary.remarks == {"patched": 2}
    assert "embedded nevertheless: 2 patched" in summary.describe()


def test_metadata_and_id_come_beside_the_vectors(tmp_path, shard):
    embed(MeanColor(), shard, tmp_path, id_col="id", metadata_columns={"number": "int64", "none": "bool"})
    table = pq.read_table(tmp_path / "out" / "s.parquet")
    assert table.column_names == ["shard", "key", "id", "number", "none", "image_embedding"]
    assert table["id"].to_pylist() == [f"img-{n}" for n in range(7)]
    assert table["number"].to_pylist() == list(range(7))
    assert table["none"].null_count == 7


def test_an_empty_shard_and_one_without_a_good_sample_have_the_schema_of_the_others(tmp_path, shard):
    embed(MeanColor(), shard, tmp_path)
    full = pq.read_schema(tmp_path / "out" / "s.parquet")
    for members in ({}, {"1.jpg": b"broken"}):
        embed(MeanColor(), make_tar(tmp_path / "e.tar", members), tmp_path, max_failed_fraction=1)
        assert pq.read_schema(tmp_path / "out" / "s.parquet").equals(full)
        assert polars.read_parquet(tmp_path / "out" / "s.parquet").height == 0


def test_float16_is_stored_on_demand(tmp_path, shard):
    embed(MeanColor(), shard, tmp_path, embedding_dtype="float16")
    stored = describe_file(str(tmp_path / "out" / "s.parquet")).vectors
    assert stored == "fixed_size_list<element: halffloat not null>[3]"


def test_too_many_failures_leave_nothing(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"1.jpg": make_image(), "2.jpg": b"broken", "3.jpg": b"broken"})
    with pytest.raises(ShardError, match=r"2 of 3 samples failed.*max_failed_fraction"):
        embed(MeanColor(), path, tmp_path, ledger_path=tmp_path / "out" / "l.parquet", max_failed_fraction=0.5)
    assert leftovers(tmp_path / "out") == []


def test_vectors_do_not_depend_on_the_batch_size_or_on_neighbours(tmp_path, shard):
    class Careless(ImageEmbedder):
        """Leaves its model in train mode, where dropout draws and batch statistics mix."""

        def load_embedding_model(self, device):
            torch.manual_seed(0)
            layers = torch.nn.Conv2d(3, 8, 16, 16), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5)
            return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).train()

    found = []
    for size in (1, 2, 7):
        embedder = Careless()
        embedder.batch_size = size
        embed(embedder, shard, tmp_path)
        found.append(read_vectors(str(tmp_path / "out" / "s.parquet"))[1])
    assert np.allclose(found[0], found[1], atol=1e-5)
    assert np.allclose(found[0], found[2], atol=1e-5)


def test_samples_to_embed_again_that_the_shard_does_not_hold_are_counted_in_the_log(tmp_path, shard, caplog):
    embed(MeanColor(), shard, tmp_path, only={"00001", "00003"})
    assert "to embed again" not in caplog.text
    embed(MeanColor(), shard, tmp_path, only={"00001", "of another shard", "gone"})
    assert f"{shard}: only 1 of the 3 samples to embed again are in it; expected the shard that" in caplog.text
    assert read_vectors(str(tmp_path / "out" / "s.parquet"))[0]["key"].to_pylist() == ["00001"]


def test_a_model_is_loaded_once_for_several_shards(tmp_path, shard):
    class Counting(MeanColor):
        loads = 0

        def load_embedding_model(self, device):
            self.loads += 1
            return super().load_embedding_model(device)

    embedder = Counting()
    for _ in range(3):
        embed(embedder, shard, tmp_path)
    assert embedder.loads == 1


# A subclass written for NeMo Curator, and other loaders.


class NemoStyle(ImageEmbedder):
    def __init__(self, model_name="nemo", batch_size=2):
        super().__init__(model_name=model_name, image_embedding_column="image_embedding", classifiers=[])
        self.batch_size = batch_size

    def load_dataset_shard(self, tar_path):
        import tarfile

        images, metadata = [], []
        with tarfile.open(tar_path) as archive:
            for member in archive:
                content = archive.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    images.append(self.decode(content))
                else:
                    metadata.append(json.loads(content))
        for start in range(0, len(images), self.batch_size):
            yield torch.stack(images[start : start + self.batch_size]), metadata[start : start + self.batch_size]

    def load_embedding_model(self, device):
        return lambda batch: batch.mean(dim=(2, 3)).to(torch.float64)


def test_a_nemo_subclass_runs_with_its_import_line_changed(tmp_path, shard):
    ledger = embed(NemoStyle(), shard, tmp_path, id_col="id", metadata_columns=["number"])
    table, vectors, _ = read_vectors(str(tmp_path / "out" / "s.parquet"))
    assert table["id"].to_pylist() == [f"img-{n}" for n in range(7)]
    assert table["key"].to_pylist() == [f"{n:05d}" for n in range(7)]  # found by the id, since its metadata has none
    assert ledger.embedded == ledger.seen == 7
    embed(MeanColor(), shard, tmp_path)
    assert np.allclose(vectors, read_vectors(str(tmp_path / "out" / "s.parquet"))[1], atol=1e-6)


def test_a_nemo_subclass_on_a_shard_with_captions(tmp_path):
    members = {}
    for n in range(3):
        members |= {f"{n}.jpg": make_image(n), f"{n}.json": {"id": n}}
    path = make_tar(tmp_path / "s.tar", {**members, "3.txt": b"a caption without an image"})

    class Captioned(NemoStyle):
        def load_dataset_shard(self, tar_path):
            yield torch.zeros(3, 3, 2, 2), [{"id": n} for n in range(3)]

    ledger = embed(Captioned(), path, tmp_path, id_col="id", max_failed_fraction=0.3)
    assert [(failed.key, failed.kind) for failed in ledger.failed] == [("3", "not_loaded")]


def test_a_loader_may_yield_any_batch_that_its_model_takes(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"", "b.jpg": b"", "c.jpg": b""})
    batches = [({"pixel_values": torch.ones(3, 2)}, rows_of("a", "b", "c"))]
    embed(Own(batches, lambda batch: batch["pixel_values"]), path, tmp_path)
    assert read_vectors(str(tmp_path / "out" / "s.parquet"))[1].shape == (3, 2)


def test_a_loader_of_ones_own_may_draw_from_the_default_one(tmp_path, shard):
    class Brighter(MeanColor):
        def load_dataset_shard(self, tar_path):
            for batch, metadata in super().load_dataset_shard(tar_path):
                yield batch + 1, metadata

    ledger = embed(Brighter(), shard, tmp_path)
    assert ledger.embedded == ledger.seen == 7
    assert read_vectors(str(tmp_path / "out" / "s.parquet"))[1].min() > 1


def test_samples_that_a_loader_drops_are_failed_by_name(tmp_path):
    path = make_tar(tmp_path / "s.tar", [(f"{key}.jpg", b"") for key in "abcdb"])
    ledger = embed(Own([(torch.ones(2, 3), rows_of("a", "c"))]), path, tmp_path, max_failed_fraction=1)
    assert sorted((failed.key, failed.kind) for failed in ledger.failed) == [
        ("b", "not_loaded"),
        ("b (again at byte 2048)", "not_loaded"),
        ("d", "not_loaded"),
    ]
    with pytest.raises(ShardError, match="3 of 5 samples failed"):
        embed(Own([(torch.ones(2, 3), rows_of("a", "c"))]), path, tmp_path)


# Breaches of the contract: one clear line each.


def raise_error(error):
    raise error


ABC = ("a", "b", "c")
ONES = torch.ones(3, 2)
BREACHES = {
    "fewer dicts than images": (
        Own([(ONES, rows_of("a", "b"))]),
        "yielded 3 images with 2 dicts of metadata; expected one dict per image",
    ),
    "fewer vectors than images": (
        Own([(ONES, rows_of(*ABC))], lambda batch: batch[:2]),
        r"returned shape \(2, 2\); expected \(3, dimension\)",
    ),
    "vectors with too many axes": (
        Own([(ONES, rows_of(*ABC))], lambda batch: batch[..., None, None]),
        r"shape \(3, 2, 1, 1\)",
    ),
    "another dimension than before": (
        Own([(ONES[:2], rows_of("a", "b")), (torch.ones(1, 5), rows_of("c"))]),
        "sample 'c': own: the model returned dimension 5, but 2 before",
    ),
    "an error in the model": (
        Own([(ONES, rows_of(*ABC))], lambda batch: raise_error(KeyError("weights"))),
        r"the model raised KeyError: 'weights' \(test_embed.py, line \d+\)",
    ),
    "no tensor from the model": (
        Own([(ONES, rows_of(*ABC))], lambda batch: "text"),
        "the model returned a str; expected a tensor with one vector per image",
    ),
    "a tuple from the model": (
        Own([(ONES, rows_of(*ABC))], lambda batch: (batch, batch)),
        "the model returned a tuple; expected a tensor",
    ),
    "complex numbers": (
        Own([(ONES, rows_of(*ABC))], lambda batch: batch.to(torch.complex64)),
        "the model returned torch.complex64, torch.strided; expected floats",
    ),
    "a sparse tensor": (
        Own([(ONES, rows_of(*ABC))], lambda batch: batch.to_sparse()),
        "torch.sparse_coo; expected floats in a dense tensor; convert it",
    ),
    "a sample twice": (Own([(ONES, rows_of("a", "b", "a"))]), "yielded a sample 'a' .* twice"),
    "a batch twice": (Own([(ONES, rows_of(*ABC)), (ONES, rows_of(*ABC))]), "yielded a sample 'a' .* twice"),
    "a sample that is not there": (Own([(ONES, rows_of("a", "b", "x"))]), "a sample 'x' that is not in the tar"),
    "no pairs": (Own([ONES, ONES]), "load_dataset_shard failed: .* expected it to yield pairs"),
    "no list of dicts": (Own([(ONES, list(ABC))]), "load_dataset_shard failed: .* one dict per image"),
    "nothing but None": (Own(None), "load_dataset_shard failed: TypeError"),
    "an error in the loader": (
        Own(raise_error(error) for error in [FileNotFoundError(2, "No such file", "index.json")]),
        "load_dataset_shard failed: FileNotFoundError: .*'index.json' .test_embed.py, line .*wds.warn_and_continue",
    ),
    "no super().__init__": (type("Bare", (MeanColor,), {"__init__": lambda self: None})(), "does not call super"),
    "classifiers": (MeanColor(classifiers=["nsfw"]), "'nsfw' is not an ImageClassifier"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_contract_is_one_line_that_names_shard_and_sample(tmp_path, breach):
    path = make_tar(tmp_path / "s.tar", {f"{key}.jpg": b"" for key in ABC})
    embedder, message = BREACHES[breach]
    with pytest.raises(EmbedderError, match=message) as caught:
        embed(embedder, path, tmp_path)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "out") == [] if (tmp_path / "out").exists() else True


def test_a_missing_shard_is_one_line(tmp_path):
    with pytest.raises(ShardError, match=r"none\.tar': no such shard"):
        embed(MeanColor(), tmp_path / "none.tar", tmp_path)


def test_an_output_that_would_replace_the_shard_or_the_ledger_is_refused(tmp_path, shard):
    (tmp_path / "link.parquet").symlink_to(shard)
    content, output = (tmp_path / "s.tar").read_bytes(), tmp_path / "s.parquet"
    for path, ledger in ((shard, None), (tmp_path / "link.parquet", None), (output, output), (output, shard)):
        with pytest.raises(ConfigError, match="expected different files, because one would replace another"):
            embed_shard(MeanColor(), shard, path, ledger_path=ledger, device="cpu")
    done = run_cli("embed", shard, shard, "--embedder", "none:None")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "error: shard, output and ledger are '" in done.stderr
    assert (tmp_path / "s.tar").read_bytes() == content and not output.exists()


def test_an_empty_shard_cannot_tell_the_dimension_of_a_loader_of_ones_own(tmp_path):
    with pytest.raises(ShardError, match="no sample is embedded, so the dimension"):
        embed(Own(), make_tar(tmp_path / "s.tar", {}), tmp_path)


def test_an_empty_shard_of_a_class_that_makes_no_tensor_is_one_line(tmp_path):
    class NoTensor(MeanColor):
        def preprocess(self, image):
            return np.zeros(3)

    with pytest.raises(EmbedderError, match=r"sample 'blank': preprocess gave a ndarray; expected a torch\.Tensor"):
        embed(NoTensor(), make_tar(tmp_path / "s.tar", {}), tmp_path)


# Memory of the device.


class Crowded(MeanColor):
    """Its device holds `room` images."""

    batch_size = 7
    room = 2

    def load_embedding_model(self, device):
        def forward(batch):
            self.sizes.append(len(batch))
            if len(batch) > self.room:
                raise torch.cuda.OutOfMemoryError("no room")
            return batch.mean(dim=(2, 3))

        self.sizes = []
        return forward


def test_a_batch_that_does_not_fit_is_halved_and_the_vectors_stay_the_same(tmp_path, caplog):
    path = make_shard(tmp_path / "s.tar", 16)
    embed(MeanColor(), path, tmp_path)
    expected = read_vectors(str(tmp_path / "out" / "s.parquet"))
    embedder = Crowded()
    embed(embedder, path, tmp_path)
    table, vectors, described = read_vectors(str(tmp_path / "out" / "s.parquet"))
    assert np.array_equal(vectors, expected[1])
    assert table["key"].equals(expected[0]["key"])
    assert embedder.sizes == [7, 3, 1] + [1] * 15
    assert described.provenance.max_batch_size == 1
    assert "out of memory with 7 images; continuing with 3" in caplog.text


def test_one_image_that_does_not_fit_is_an_error(tmp_path, shard):
    embedder = Crowded()
    embedder.room = 0
    with pytest.raises(GpuError, match="out of memory on the device with one image"):
        embed(embedder, shard, tmp_path)
    assert leftovers(tmp_path / "out") == []


def test_a_lost_device_is_told_from_a_defect(tmp_path, shard, monkeypatch):
    def fail(batch):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    embedder = Raising()
    embedder.fail = fail
    with pytest.raises(GpuLostError, match=r"GPU GPU-7 failed.*CUDA error: an illegal memory access") as caught:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
        embed(embedder, shard, tmp_path, device="cuda")
    assert "\n" not in str(caught.value)
    with pytest.raises(EmbedderError):  # on a CPU the same words are a defect
        embed(embedder, shard, tmp_path, device="cpu")


@pytest.mark.slow
def test_the_models_thread_keeps_its_cores_whatever_the_decoding_threads_do(tmp_path, shard):
    code = """
import os, sys, torch
from embedders import embed_shard
from mean_color import MeanColor
embed_shard(MeanColor(), sys.argv[1], sys.argv[2], device="cpu")
assert torch.get_num_threads() == 2, torch.get_num_threads()
"""
    environment = clean_environment() | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code, shard, str(tmp_path / "s.parquet")]
    subprocess.run(command, env=environment, check=True)


# Kills, two writers, full disks.

SLOW = """
import sys, time
from embedders import embed_shard
from mean_color import MeanColor

class Slow(MeanColor):
    batch_size = 1
    def load_embedding_model(self, device):
        forward = super().load_embedding_model(device)
        def wait(batch):
            print("batch", flush=True)
            time.sleep(float(sys.argv[3]))
            return forward(batch)
        return wait

embed_shard(Slow(), sys.argv[1], sys.argv[2], device="cpu")
"""


@pytest.mark.slow
def test_a_job_killed_half_way_leaves_nothing_under_the_name_and_the_next_one_completes(tmp_path, shard):
    out = tmp_path / "out"
    job = start_python(SLOW, shard, out / "s.parquet", 30)
    assert job.stdout.readline() == "batch\n"
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert [name.endswith(PARTIAL) for name in leftovers(out)] == [True]
    embed(MeanColor(), shard, tmp_path)
    assert leftovers(out) == ["s.parquet"]
    assert read_vectors(str(out / "s.parquet"))[1].shape == (7, 3)


@pytest.mark.slow
def test_two_jobs_of_one_output_at_once_leave_one_whole_file(tmp_path, shard):
    out = tmp_path / "out"
    jobs = [start_python(SLOW, shard, out / "s.parquet", 0.02) for _ in range(2)]
    for job in jobs:
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors
    assert leftovers(out) == ["s.parquet"]
    assert read_vectors(str(out / "s.parquet"))[1].shape == (7, 3)


def test_a_full_disk_is_one_line_and_no_debris(tmp_path):
    path = make_tar(tmp_path / "s.tar", {f"{n}.jpg": b"" for n in range(1000)})
    batches = [(torch.rand(1000, 300), rows_of(*map(str, range(1000))))]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            embed(Own(batches), path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert leftovers(tmp_path / "out") == []


@pytest.mark.slow
def test_a_failing_job_says_one_line_and_exits_with_1(tmp_path):
    # Whole row groups are written before it fails: nothing may try to finish the file on the way out.
    source = tmp_path / "broken.py"
    source.write_text(
        "import torch\n"
        "from embedders import ImageEmbedder\n"
        "class Broken(ImageEmbedder):\n"
        "    def load_dataset_shard(self, tar_path):\n"
        "        for part in range(3):\n"
        "            yield torch.ones(9000, 300), [{'__key__': str(n)} for n in range(9000)]\n"
        "    def load_embedding_model(self, device):\n"
        "        return lambda batch: batch\n"
    )
    members = {f"{n}.jpg": b"" for n in range(9000)}
    job = run_cli("embed", make_tar(tmp_path / "s.tar", members), tmp_path / "out" / "s.parquet", "--device", "cpu",
                  "--embedder", f"{source}:Broken")  # fmt: skip
    assert job.returncode == 1
    lines = [line for line in job.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, job.stderr
    assert lines[0].startswith("error: ")
    assert "'0'" in lines[0]
    assert leftovers(tmp_path / "out") == []


# Memory does not grow with the shard.

MEASURE = """
import sys
import torch
from embedders import ImageEmbedder, embed_shard
from embedders.job.meter import read_peak_memory

class Wide(ImageEmbedder):
    num_threads_per_worker = 2
    def preprocess(self, image):
        return torch.zeros(8)
    def load_embedding_model(self, device):
        return lambda batch: torch.ones(len(batch), int(sys.argv[3]))

torch.set_num_threads(1)
embed_shard(Wide(), sys.argv[1], sys.argv[2], device="cpu", metadata_columns="all")
print(read_peak_memory() >> 20)
"""


@pytest.mark.slow
def test_ten_thousand_images_take_no_more_memory_than_a_thousand(tmp_path):
    image = make_image(size=(16, 16))
    peaks_mb = []
    for count in (1_000, 10_000):
        members = ((f"{n:06d}.{suffix}", content) for n in range(count)
                   for suffix, content in (("jpg", image), ("json", {"n": n, "caption": "word " * 20})))  # fmt: skip
        path = make_tar(tmp_path / f"{count}.tar", members)
        job = start_python(MEASURE, path, tmp_path / "out.parquet", 1280)
        output, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors
        peaks_mb.append(int(output))
    print("peak RSS in MB:", peaks_mb)
    assert peaks_mb[1] <= 1.1 * peaks_mb[0], f"peaks of {peaks_mb} MB for 1,000 and 10,000 images"
