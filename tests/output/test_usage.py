import json
from dataclasses import replace

import pytest
from support.results import make_provenance, write_shard

from embedders.output.parquet import inspect_file, read_account
from embedders.output.summary import summarize_run, write_summary
from embedders.output.usage import Usage, UsageTotals
from embedders.report.findings import judge_run

ON_A_CPU = Usage(cpu_seconds=60.0, peak_memory_bytes=700_000_000)
HALF_BUSY = Usage(30.0, 2_000_000_000, 1800.0, 900.0, 5_000_000_000)
IDLE = Usage(10.0, 1_000_000_000, 600.0, 0.0, 9_000_000_000)
UNMEASURED = Usage(5.0, 1_000_000_000, 1200.0)


def add(*shards):
    totals = UsageTotals()
    for usage, images in shards:
        totals.add(usage, images)
    return totals


def test_what_a_shard_used_is_read_as_it_was_written(tmp_path):
    for name, usage in {"a": HALF_BUSY, "b": ON_A_CPU, "c": None}.items():
        write_shard(tmp_path, name, 1, [], usage=usage)
        assert read_account(str(tmp_path / f"ledger/{name}.parquet"))[2] == usage
    assert Usage.from_json(HALF_BUSY.as_json() | {"of_a_later_version": 1}) == HALF_BUSY


def test_inspect_shows_the_usage_from_the_ledger_of_the_same_run_only(tmp_path, monkeypatch):
    for name, usage in {"mine": HALF_BUSY, "other": ON_A_CPU}.items():
        embedder = replace(make_provenance().embedder, model_name=name)
        write_shard(tmp_path / name, "a", 1, [], usage=usage, ledger="ledger/a.parquet", embedder=embedder)
    path = str(tmp_path / "mine/embeddings/a.parquet")
    for place, shown in {"mine": HALF_BUSY.as_json(), "other": None, "": None}.items():
        monkeypatch.chdir(tmp_path / place)
        assert inspect_file(path).get("usage") == shown


def test_a_run_on_a_cpu_says_nothing_of_gpus():
    totals = add((ON_A_CPU, 9), (ON_A_CPU, 9))
    assert totals.describe() == "2 min of CPU time, at most 700 MB of memory in a job"
    assert (totals.as_json()["gpu_hours"], totals.as_json()["images_per_gpu_hour"]) == (0, None)


def test_the_time_of_gpus_and_how_much_of_it_they_were_idle():
    totals = add((HALF_BUSY, 3000), (IDLE, 1000))
    assert (totals.gpu_seconds, totals.gpu_busy_seconds) == (2400, 900)
    assert totals.as_json().items() >= {
        "gpu_hours": 0.6667, "images_per_gpu_hour": 6000.0, "gpu_idle_share": 0.625,
        "gpu_peak_memory_bytes": 9_000_000_000, "peak_memory_bytes": 2_000_000_000, "unknown_shards": 0,
    }.items()  # fmt: skip
    assert totals.describe() == (
        "0.667 GPU-hours leased, 6,000 images per GPU-hour; the GPUs were idle for 62% of the time; "
        "40 s of CPU time, at most 2.0 GB of memory in a job"
    )


def test_what_is_unknown_is_not_taken_for_nothing():
    totals = add((HALF_BUSY, 3000), (UNMEASURED, 1000), (None, 50_000), (ON_A_CPU, 70_000))
    assert totals.images_per_gpu_hour == pytest.approx(4000 / (3000 / 3600)), "of the shards that leased a GPU"
    assert totals.gpu_idle_share == 0.5, "of the time that was measured"
    phrase = totals.describe()
    assert "the GPUs were idle for 50% of the time (unknown for 1 shards)" in phrase
    assert phrase.endswith("; unknown for 1 of 4 shards, whose ledgers do not have it")
    assert add((Usage(0, 0, 1234.5 * 3600), 0)).describe_gpus().startswith("1,234 GPU-hours leased")
    assert "; how busy the GPUs were is unknown" in add((UNMEASURED, 1000)).describe()
    assert add((None, 5), (None, 5)).describe() == "unknown for 2 of 2 shards, whose ledgers do not have it"


def test_a_run_with_shards_from_before_is_summarized(tmp_path):
    write_shard(tmp_path, "new", 3, [], usage=HALF_BUSY)
    write_shard(tmp_path, "old", 4, [])
    summary = summarize_run(tmp_path, ["new", "old"])
    assert summary.describe().splitlines()[-1].startswith("use: 0.5 GPU-hours leased, 6 images per GPU-hour; ")
    assert "unknown for 1 of 2 shards" in summary.describe()
    write_summary(summary, tmp_path / "summary.json")
    stored = json.loads((tmp_path / "summary.json").read_text())["usage"]
    assert (stored["shards"], stored["unknown_shards"], stored["gpu_images"]) == (1, 1, 3)
    assert (stored["images_per_gpu_hour"], stored["gpu_idle_share"]) == (6, 0.5)
    (finding,) = [finding for finding in judge_run(summary, 0) if finding.text.startswith("GPUs: ")]
    assert (finding.level, finding.section) == ("note", "speed")
