"""Members of one key that are not side by side: the key is on one side of the account, and never embedded twice."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mean_color import MeanColor
from support.tools import MEAN_COLOR, make_image, make_tar

from embedders import embed_shard
from embedders.cli import main

JPG, OTHER = make_image(0), make_image(1)
TARS = {
    "its json comes later": [("1.jpg", JPG), ("2.jpg", JPG), ("1.json", {"a": 1})],
    "its json comes earlier": [("1.json", {"a": 1}), ("2.jpg", JPG), ("1.jpg", JPG)],
    "two images": [("1.jpg", JPG), ("2.jpg", JPG), ("1.jpg", OTHER)],
    "in three places": [("1.jpg", JPG), ("2.jpg", JPG), ("1.json", {}), ("3.jpg", JPG), ("1.txt", b"text")],
    "the later ones have damage before them": [("1.jpg", JPG), ("2.jpg", JPG), ("gap.jpg", JPG), ("1.json", {})],
    "of all the keys, as find lists them": [(f"{n}.{suffix}", JPG) for suffix in ("jpg", "cls") for n in range(3)],
    "a file without a suffix has its name": [("1", b"text"), ("1.jpg", JPG), ("2.jpg", b"broken")],
}


@pytest.fixture(scope="module", params=TARS)
def run(request, tmp_path_factory):
    """Embed a tar, then what failed of it once more."""
    folder = tmp_path_factory.mktemp("run")
    shard = Path(make_tar(folder / "s.tar", TARS[request.param]))
    if "damage" in request.param:
        content = bytearray(shard.read_bytes())
        at = content.index(b"gap.jpg")
        content[at : at + 512] = b"\xff" * 512
        shard.write_bytes(content)
    options = ("--embedder", MEAN_COLOR, "--device", "cpu", "--accept-damaged-shards", "--max-failed-fraction", "1")
    for name, only in (("first", ()), ("second", ("--only", folder / "first.ledger"))):
        paths = (shard, folder / f"{name}.parquet", "--ledger", folder / f"{name}.ledger")
        result = CliRunner().invoke(main, [*map(str, ("embed", *paths, *options, *only))])
        assert result.exit_code == 0, result.output
    return folder, request.param


def read_keys(path):
    return pq.read_table(path)["key"].to_pylist()


def test_a_key_is_on_one_side_and_embedded_once(run):
    folder, case = run
    embedded, failed = read_keys(folder / "first.parquet"), read_keys(folder / "first.ledger")
    keys = {name.partition(".")[0] for name, _ in TARS[case] if "." in name}
    assert len(set(embedded)) == len(embedded)
    assert set(embedded) | set(failed) >= keys - {"gap"}
    assert not set(embedded) & set(read_keys(folder / "second.parquet"))
    if "without a suffix" not in case:
        assert not set(embedded) & set(failed)
        assert len(set(failed)) == len(failed)


def test_verify_agrees(run):
    result = CliRunner().invoke(main, ["verify", f"{run[0]}/first.parquet", "--device", "cpu"])
    assert result.exit_code == 0, result.output


def test_what_is_left_out_is_named_with_its_place_and_the_advice(tmp_path):
    path = make_tar(tmp_path / "s.tar", TARS["its json comes later"])
    failed = embed_shard(MeanColor(), path, tmp_path / "s.parquet", device="cpu", max_failed_fraction=1).failed
    assert [(row.key, row.kind, row.member) for row in failed] == [
        (f"1 (again at byte {failed[0].offset})", "repeated_key", "1.json")
    ]
    assert "members .json of key '1', which came earlier in the tar, are left out" in failed[0].message
    assert "tar --sort=name" in failed[0].message
