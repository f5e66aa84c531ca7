"""Where a tar ends: what real programs write passes, and a tail of zeros in the place of members never does."""

import gzip
import os
import shutil
import subprocess
import tarfile

import pytest
import webdataset
from support.tools import MEAN_COLOR, make_shard, make_tar, run_cli

from embedders.errors import ShardError
from embedders.reading.end import is_end
from embedders.reading.samples import read_samples

SIZES = {f"{number:03}.jpg": 100 + 137 * number % 5000 for number in range(60)}
PROGRAMS = {
    **{
        f"{program} -b {blocks}{pipe}": f"{program} -b {blocks} -cf {'-' if pipe else 's.tar'} data {pipe}"
        for program in ("tar", "bsdtar")
        for blocks in (1, 2, 7, 20, 32, 63, 64, 126, 512, 2048, 8192)
        for pipe in ("", "| cat > s.tar")
    },
    **{f"tar --format={form}": f"tar --format={form} -cf s.tar data" for form in ("gnu", "pax", "ustar", "v7")},
    "tar -z": "tar -czf s.tar data",
    "tar -z -b 2048": "tar -b 2048 -czf s.tar data",
    "tar -r": "tar -cf s.tar data/000.jpg; tar -rf s.tar $(ls -d data/* | tail -n +2)",
    "bsdtar": "bsdtar -cf s.tar data",
    "bsdtar in a pipe": "bsdtar -cf - data | cat > s.tar",
    "bsdtar --format=gnutar": "bsdtar --format=gnutar -cf s.tar data",
    "busybox tar": "busybox tar -cf s.tar data",
    "cpio": "find data -type f | sort | cpio -o -H ustar > s.tar",
    "cpio -B": "find data -type f | sort | cpio -o -B -H ustar > s.tar",
    "cpio -C 65536": "find data -type f | sort | cpio -o -C 65536 -H ustar > s.tar",
    "pax": "pax -w data > s.tar",
    "pax -b 32256": "pax -b 32256 -w data > s.tar",
    "dd conv=sync": "tar -cf - data | dd bs=64k iflag=fullblock conv=sync of=s.tar",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "data").mkdir()
    for name, size in SIZES.items():
        (folder / "data" / name).write_bytes(os.urandom(size))
    return folder


def read_sizes(path) -> dict[str, int]:
    """Sizes of the images by name, without the folder."""
    samples = [sample for sample in read_samples(str(path)) if sample.members]
    return {f"{os.path.basename(sample.key)}.jpg": len(sample.members["jpg"]) for sample in samples}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_programs_write_is_whole(folder, program):
    if not shutil.which(PROGRAMS[program].split(" | ")[-1].split()[0]) or not shutil.which(program.split()[0]):
        pytest.skip(f"{program.split()[0]} is not installed")
    (folder / "s.tar").unlink(missing_ok=True)
    subprocess.run(PROGRAMS[program], shell=True, cwd=folder, check=True, capture_output=True, timeout=60)
    assert read_sizes(folder / "s.tar") == SIZES


@pytest.mark.parametrize("mode", ["w", "w|", "w:gz", "w|gz"])
def test_what_python_and_webdataset_write_is_whole(tmp_path, mode):
    for bufsize in (512, 10240, 65536, 1 << 20):
        options = {"bufsize": bufsize} if "|" in mode else {}
        path = make_tar(f"{tmp_path}/s.tar", {name: b"x" * size for name, size in SIZES.items()}, mode, **options)
        assert read_sizes(path) == SIZES


@pytest.mark.parametrize("opened", [True, False], ids=["as img2dataset", "by its name"])
def test_what_webdatasets_writer_writes_is_whole(tmp_path, opened):
    # img2dataset opens the file by fsspec, and hands it to webdataset's TarWriter
    target = (tmp_path / "s.tar").open("wb") if opened else str(tmp_path / "s.tar")
    with webdataset.TarWriter(target) as writer:
        for name, size in SIZES.items():
            writer.write({"__key__": name[:3], "jpg": b"x" * size, "json": {"n": 1}, "txt": "text"})
    if opened:
        target.close()
    assert read_sizes(tmp_path / "s.tar") == SIZES


def read_headers(path) -> list[int]:
    with tarfile.open(path) as archive:
        return [member.offset for member in archive.getmembers()]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("blocks", [1, 20])
def test_zeros_in_the_place_of_the_last_members_are_damage(folder, blocks, packed):
    subprocess.run(f"tar -b {blocks} -cf whole.tar data", shell=True, cwd=folder, check=True)
    content = (folder / "whole.tar").read_bytes()
    found = []
    for header in read_headers(folder / "whole.tar")[:-1]:
        broken = content[:header] + b"\0" * (len(content) - header)
        (folder / "broken.tar").write_bytes(gzip.compress(broken, 1) if packed else broken)
        try:
            read_sizes(folder / "broken.tar")
        except ShardError as error:
            assert f"damaged at byte {header}" in str(error)
            assert f"zeros from here to the end, {len(content) - header} bytes" in str(error)
            found.append(header)
        else:
            # which is, to the byte, what a program writes that never had these members
            assert len(content) - header <= 21 * 512
    assert len(found) > 50


def test_a_large_record_is_known_by_the_length_of_the_file():
    block = 512
    assert is_end(5 * block, 7 * block)
    assert is_end(5 * block, 26 * block)
    assert not is_end(5 * block, 27 * block)
    assert is_end(5 * block, 64 * block)
    assert not is_end(5 * block, 65 * block)
    assert is_end(63 * block, 128 * block)
    assert not is_end(5 * block, 128 * block + 1)
    assert not is_end(5 * block, 8192 * 2 * block)


def test_a_file_of_zeros_is_an_empty_tar_only_where_programs_write_one(tmp_path):
    path = tmp_path / "s.tar"
    for whole in (make_tar(path, {}), subprocess.run(f"tar -cf {path} -T /dev/null", shell=True, check=True)):
        assert whole and path.stat().st_size == 10240
        assert list(read_samples(str(path))) == []
    for size in (11_264, 65_536, 1 << 20, 3_000_000):
        path.write_bytes(b"\0" * size)
        with pytest.raises(ShardError, match="damaged at byte 0: zeros from here to the end"):
            list(read_samples(str(path)))


def test_where_damage_is_accepted_a_lost_tail_is_in_the_ledger_with_its_neighbour(folder):
    subprocess.run("tar --sort=name -cf whole.tar data", shell=True, cwd=folder, check=True)
    content = (folder / "whole.tar").read_bytes()
    header = read_headers(folder / "whole.tar")[20]
    (folder / "broken.tar").write_bytes(content[:header].ljust(len(content), b"\0"))
    samples = list(read_samples(str(folder / "broken.tar"), accept_damage=True))
    assert [sample.problem for sample in samples[:-2]] == [None] * 18
    assert [(sample.key, sample.problem[0]) for sample in samples[-2:]] == [
        (f"(damage at byte {header})", "damaged_tar"),
        ("data/018", "damaged_tar"),
    ]


@pytest.mark.slow
def test_check_and_verify_notice_a_lost_tail(tmp_path):
    shard, output = tmp_path / "s.tar", tmp_path / "s.parquet"
    make_shard(shard, 30)
    content = shard.read_bytes()
    cut = read_headers(shard)[40]
    # As an earlier version embedded it: what is left, as if it were all.
    shard.write_bytes(content[:cut] + b"\0" * 1024)
    embedded = run_cli("embed", shard, output, "--embedder", MEAN_COLOR, "--device", "cpu",
                       "--ledger", tmp_path / "s.ledger")  # fmt: skip
    assert embedded.returncode == 0, embedded.stderr
    shard.write_bytes(content[:cut].ljust(len(content), b"\0"))
    checked = run_cli("check", MEAN_COLOR, "--shard", shard, "--device", "cpu")
    assert checked.returncode == 1
    assert f"damaged_tar, as '(damage at byte {cut})': zeros from here to the end" in checked.stdout
    verified = run_cli("verify", output, "--device", "cpu")
    assert verified.returncode == 1
