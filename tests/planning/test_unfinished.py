"""The lines at the end of a run for the shards without a result."""

from embedders.planning.jobs import Jobs
from embedders.planning.unfinished import describe_failures


def test_an_error_that_many_shards_share_is_written_once(tmp_path):
    (tmp_path / "logs/embed").mkdir(parents=True)
    (tmp_path / "embeddings").mkdir()
    errors = {"a": "offline", "b": "offline", "c": "1 of 1 samples failed", "d": "offline", "e": "offline"}
    for shard, error in errors.items():
        (tmp_path / f"logs/embed/{shard}.log").write_text(f"error: {error}\n")
    (tmp_path / "embeddings/d.parquet").touch()
    (tmp_path / "logs/embed/e.log").unlink()  # its job never started
    jobs = Jobs(False, shards={shard: [shard] for shard in errors})
    lines = list(describe_failures(str(tmp_path), {shard: f"data/{shard}.tar" for shard in errors}, jobs, []))
    assert lines == [
        f"failed: data/a.tar: offline (log: {tmp_path}/logs/embed/a.log)",
        f"failed: data/b.tar: same as data/a.tar (log: {tmp_path}/logs/embed/b.log)",
        f"failed: data/c.tar: 1 of 1 samples failed (log: {tmp_path}/logs/embed/c.log)",
    ]
