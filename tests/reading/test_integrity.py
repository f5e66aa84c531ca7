"""A damaged shard never loses a sample in silence: cuts at every place, flips of every kind of byte.

The long versions (`make test-long`) do the same with more cuts and flips.
"""

import io
import random
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.tools import make_tar

from embedders import ImageEmbedder, embed_shard
from embedders.errors import ShardError
from embedders.output.ledger import Ledger
from embedders.output.parquet import read_vectors
from embedders.reading.loader import ShardLoad, open_samples
from embedders.reading.samples import read_samples


def crop_photographs(count: int, side: int = 96) -> list[bytes]:
    """Encode small crops of real photographs as JPEG."""
    from skimage import data

    photographs = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    crops = []
    for number in range(count):
        left, top = 7 * number % 200, 5 * number % 150
        buffer = io.BytesIO()
        photographs[number % 4].crop((left, top, left + side, top + side)).save(buffer, "JPEG", quality=90)
        crops.append(buffer.getvalue())
    return crops


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    members = {}
    for number, image in enumerate(crop_photographs(10)):
        members |= {f"{number:03}.jpg": image, f"{number:03}.json": {"n": number}}
    return make_tar(tmp_path_factory.mktemp("cuts") / "whole.tar", members)


def check_cut(content: bytes, cut: int, path) -> None:
    """A cut tar is an error; and where damage is accepted, every sample is whole, or named, or in a named gap."""
    whole = {sample.key: sample.members for sample in read_whole(content, path)}
    end = find_end(path)
    path.write_bytes(content[:cut])
    if cut >= end + 512:  # a zero block is left: nothing that the tar said is lost
        assert {sample.key: sample.members for sample in read_samples(str(path))} == whole
        return
    with pytest.raises(ShardError):
        list(read_samples(str(path)))
    samples = list(read_samples(str(path), accept_damage=True))
    assert [sample for sample in samples if sample.key.startswith("(damage at byte ")], cut
    for sample in samples:
        if sample.problem is None and cut > sample.offset:
            image = {suffix: content for suffix, content in sample.members.items() if suffix == "jpg"}
            assert image.items() <= whole[sample.key].items()


def read_whole(content: bytes, path):
    path.write_bytes(content)
    return list(read_samples(str(path)))


def find_end(path) -> int:
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def test_a_cut_at_any_place_is_never_silent(shard, tmp_path):
    content = open(shard, "rb").read()
    cuts = [*range(0, len(content), 512), *random.Random(0).sample(range(len(content)), 100)]
    for cut in cuts:
        check_cut(content, cut, tmp_path / "cut.tar")


@pytest.mark.long
def test_500_cuts_at_random_bytes(shard, tmp_path):
    content = open(shard, "rb").read()
    for cut in random.Random(1).sample(range(len(content)), 500):
        check_cut(content, cut, tmp_path / "cut.tar")


class Thumbnail(ImageEmbedder):
    """Its vector is the image itself, so that a changed pixel shows."""

    batch_size = 16
    num_threads_per_worker = 1

    def preprocess(self, image):
        import torch

        return torch.from_numpy(np.array(image.resize((8, 8)))).flatten().float()

    def load_embedding_model(self, device):
        return lambda batch: batch


def check_flips(count: int, seed: int, tmp_path) -> dict[str, int]:
    """Flip one byte at a time, and account for what came of it."""
    shard = make_tar(tmp_path / "s.tar", {f"{n:03}.jpg": image for n, image in enumerate(crop_photographs(30))})
    content = open(shard, "rb").read()
    embedder = Thumbnail()
    embed_shard(embedder, shard, tmp_path / "whole.parquet", device="cpu")
    table, vectors, _ = read_vectors(str(tmp_path / "whole.parquet"))
    whole = dict(zip(table["key"].to_pylist(), vectors, strict=True))
    with tarfile.open(shard) as archive:
        spans = {m.name[:3]: range(m.offset_data, m.offset_data + m.size) for m in archive.getmembers()}
    chance, outcomes = random.Random(seed), {"detected": 0, "failed": 0, "pixels": 0, "nothing": 0}
    for _ in range(count):
        place = chance.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= chance.randrange(1, 256)
        (tmp_path / "f.tar").write_bytes(damaged)
        outcomes[find_outcome(embedder, tmp_path, whole, place, spans)] += 1
    return outcomes


def find_outcome(embedder, tmp_path, whole, place, spans) -> str:
    path, output = str(tmp_path / "f.tar"), tmp_path / "f.parquet"
    try:
        list(open_samples(path, ShardLoad(Ledger(path))))
        is_damaged = False
    except ShardError:
        is_damaged = True
    ledger = embed_shard(
        embedder, path, output, accept_damaged_shards=True, max_failed_fraction=1, device="cpu"
    )  # which itself refuses a sum that does not come out
    table, vectors, _ = read_vectors(str(output))
    found = dict(zip(table["key"].to_pylist(), vectors, strict=True))
    failed = {sample.key for sample in ledger.failed}
    changed = [key for key in found if not np.array_equal(found[key], whole.get(key))]
    if is_damaged:
        assert failed and not changed, (place, failed, changed)
        return "detected"
    assert set(found) | failed == set(whole), (place, set(whole) - set(found) - failed)
    for key in [*failed, *changed]:  # only the sample whose own bytes were flipped, and only there
        assert place in spans[key], (place, key)
    return "failed" if failed else "pixels" if changed else "nothing"


def test_a_flipped_byte_is_detected_or_fails_its_sample_or_changes_its_pixels_only(tmp_path):
    outcomes = check_flips(150, 0, tmp_path)
    assert outcomes["detected"] and outcomes["pixels"], outcomes


@pytest.mark.long
def test_2000_flipped_bytes(tmp_path):
    print(check_flips(2000, 1, tmp_path))
