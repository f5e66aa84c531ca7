from pathlib import Path

from embedders.planning.jobs import begin_jobs, plan_jobs
from embedders.reading.remote import Version


def test_no_two_jobs_have_one_name(tmp_path):
    names = ["a", "a0", "a+1", "b", "b+1+0", "c"]
    shards = {name: f"{tmp_path}/{name}.tar" for name in sorted(names)}
    jobs = begin_jobs(shards, 2)
    plan_jobs(jobs, shards, shards, 2)
    assert sorted(shard for group in jobs.shards.values() for shard in group) == sorted(names)
    plan_jobs(jobs, shards, {"a", "a0", "a+1"}, 2)  # what an earlier run has left
    assert sorted(shard for group in jobs.shards.values() for shard in group) == ["a", "a+1", "a0"]
    groups = [["a", "a0"], ["a+1"]]
    shards = {name: f"{tmp_path}/{name}.tar" for group in groups for name in group}
    plan_jobs(jobs, shards, shards, 2)
    assert jobs.shards == {"a+1": ["a", "a0"], "a+1+0": ["a+1"]}


def test_a_job_of_one_shard_is_named_after_it():
    shards = {"a": "a.tar", "a+1": "a+1.tar"}
    jobs = begin_jobs(shards, 1)
    plan_jobs(jobs, shards, shards, 1)
    assert jobs.shards == {"a": ["a"], "a+1": ["a+1"]}


def test_no_marker_of_a_job_is_the_folder_of_another(tmp_path):
    paths = {name: tmp_path / f"{name}.tar" for name in ["a", "a/0", *(f"b{number:02}" for number in range(62))]}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
        path.touch()
    shards = {name: str(path) for name, path in paths.items()}
    jobs = begin_jobs(shards, "auto")
    plan_jobs(jobs, shards, {"a", "a/0"}, "auto")  # what an earlier run has left, one shard for each job
    outputs = [Path(jobs.name_output("results", job)) for job in jobs.shards]
    assert jobs.is_grouped and len(outputs) == 2
    assert not [one for one in outputs for other in outputs if one in other.parents]


def test_shards_with_an_address_are_grouped_by_the_sizes_that_their_server_tells():
    shards = {f"{number:03}": f"s3://photos/{number:03}.tar" for number in range(320)}
    for size, expected in ((1 << 30, 8), (8 << 30, 1)):
        versions = dict.fromkeys(shards.values(), Version(size))
        jobs = begin_jobs(shards, "auto", versions)
        plan_jobs(jobs, shards, shards, "auto", versions)
        assert {len(group) for group in jobs.shards.values()} == {expected}
