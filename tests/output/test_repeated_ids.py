"""Ids that are in several rows of a run: each is counted, in bounded memory, and the first ones are named."""

import json
import random
import string
from collections import Counter
from dataclasses import asdict

import pytest
from support.results import make_run, write_shard
from support.tools import run_cli

from embedders.errors import ShardError
from embedders.output import repeated_ids
from embedders.output.repeated_ids import find_repeated_ids
from embedders.output.summary import summarize_run
from embedders.report.findings import judge_run


def expect(ids):
    """What should be found among these ids of each shard, counted without any of the code."""
    counts = Counter(one for of_shard in ids.values() for one in of_shard)
    repeated = {one: [shard for shard in sorted(ids) if one in ids[shard]] for one in counts if counts[one] > 1}
    first = sorted((shards[0], one, shards[-1]) for one, shards in repeated.items())[:5]
    named = {one: [shard, last] for shard, one, last in first}
    return {"ids": len(repeated), "rows": sum(counts[one] for one in repeated), "some": named}


def make_ids(folder, ids, **options):
    make_run(
        folder, {shard: len(of_shard) for shard, of_shard in ids.items()}, 2,
        fields=lambda shard, row: {"id": ids[shard][row]}, id_col="id", **options,
    )  # fmt: skip


def test_every_repeated_id_is_counted(tmp_path):
    chance = random.Random(0)
    words = ["".join(chance.choices(string.printable + "äß\U0001f600", k=chance.randint(0, 30))) for _ in range(900)]
    ids = {f"s{n}": chance.choices(words, k=chance.choice([0, 1, 200])) for n in range(9)}
    make_ids(tmp_path, ids)
    found = asdict(find_repeated_ids(tmp_path, list(ids), "id"))
    assert found == expect(ids) | {"id_col": "id"}
    assert found["ids"] > 50


def test_more_than_are_compared_are_counted_by_hash_and_some_are_named(tmp_path, monkeypatch):
    ids = {"a": [f"{row:03}" for row in range(50)], "b": [f"{row:03}" for row in range(10, 60)]}
    make_ids(tmp_path, ids)
    monkeypatch.setattr(repeated_ids, "COMPARED", 8)
    found = find_repeated_ids(tmp_path, ["a", "b"], "id")
    assert (found.ids, found.rows, len(found.some)) == (40, 80, 5)
    assert set(found.some) <= set(ids["a"]) & set(ids["b"])
    assert found.describe().endswith("), ...; expected each in one row; shard and key together name a row")
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings", "run_shards.json"}


def test_names_of_shards_are_no_patterns(tmp_path):
    names = ["a[1]", "a1", "b*", "bc", "c?", "key=2", "e'e"]
    make_ids(tmp_path, {name: [f"only in {name}"] for name in names} | {"b*": ["two"], "c?": ["two"]})
    assert find_repeated_ids(tmp_path, ["a[1]", "b*", "c?", "key=2", "e'e"], "id").some == {"two": ["b*", "c?"]}


def test_numbers_are_ids_too(tmp_path):
    make_ids(tmp_path, {"a": [1, 2], "b": [2, 3]}, columns={"id": "int64"})
    assert summarize_ids(tmp_path, "ab").some == {"2": ["a", "b"]}
    with pytest.raises(ShardError, match=r"no column 'other' \(id_col\); expected one of shard, key, id, v$"):
        find_repeated_ids(tmp_path, ["a"], "other")
    (tmp_path / "embeddings/b.parquet").write_bytes(b"no Parquet")
    with pytest.raises(ShardError, match=r"'id' \(id_col\) cannot be compared \(.*; expected complete outputs"):
        summarize_ids(tmp_path, "ab")


@pytest.mark.parametrize("id_col", ["Key", "Shard", 'a "b"'])
def test_an_id_may_differ_from_another_column_in_capitals_only(tmp_path, id_col):
    ids = {"a": ["one", "two"], "b": ["two", "three"]}
    make_run(
        tmp_path, {"a": 2, "b": 2}, 2, columns=[id_col.swapcase()], id_col=id_col,
        fields=lambda shard, row: {id_col: ids[shard][row]},
    )  # fmt: skip
    assert find_repeated_ids(tmp_path, ["a", "b"], id_col).some == {"two": ["a", "b"]}


def summarize_ids(folder, shards):
    return find_repeated_ids(folder, list(shards), "id")


def test_repeated_keys_are_a_plain_sentence_and_repeated_ids_a_warning_in_summary_and_report(tmp_path):
    for name, id_col in (("keys", "__key__"), ("ids", "key")):
        for shard in "abc":
            write_shard(tmp_path / name, shard, 2 if shard != "c" else 0, [], id_col=id_col)
    summary = summarize_run(tmp_path / "keys", ["a", "b", "c"])
    line = (
        "2 keys are in several shards, 4 rows in all: '0' (shards 'a' and 'b'), '1' (shards 'a' and 'b'); this does "
    )
    assert f"\n  {line}no harm, because shard and key together name a row" in summary.describe()
    assert ("note", "2 keys are in severa") in [(f.level, f.text[:20]) for f in judge_run(summary, 0)]
    summary = summarize_run(tmp_path / "ids", ["a", "b", "c"])
    assert "\n  warning: 2 values of 'key' (id_col) in several rows, 4 rows in all: '0'" in summary.describe()
    assert ("look", "2 values of 'key' (i") in [(f.level, f.text[:20]) for f in judge_run(summary, 0)]
    alone = summarize_run(tmp_path / "ids", ["a", "c"])
    assert (alone.repeated_ids.ids, alone.repeated_ids.some) == (0, {})
    assert "several" not in alone.describe()


def test_a_run_of_a_thousand_shards_names_its_repeated_ids(tmp_path):
    shards = [f"{number:05d}" for number in range(1000)]
    for number, shard in enumerate(shards):
        known = [{"__key__": f"{number}-{row}", "id": f"{number % 999}-{row}"} for row in range(3)]
        write_shard(tmp_path, shard, 3, [], id_col="id", fields=known)
    (tmp_path / "run_shards.json").write_text(json.dumps({shard: f"{shard}.tar" for shard in shards}))
    done = run_cli("summarize", tmp_path / "run_shards.json", tmp_path / "summary.json")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["repeated_ids"] == {
        **{"id_col": "id", "ids": 3, "rows": 6},
        "some": {f"0-{row}": ["00000", "00999"] for row in range(3)},
    }
    assert "warning: 3 values of 'id' (id_col) in several rows, 6 rows in all: '0-0' (shards '00000' and" in (
        done.stdout
    )
