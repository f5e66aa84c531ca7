"""Jobs that reach their time limit, at the end of these tests, because they have been on their way for long."""

import re

import pytest
from support.cluster.runs import finish, read_inodes, read_job_ids, read_results, select
from support.tools import leftovers

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(("name", "state"), [("warned", "FAILED"), ("killed", "TIMEOUT")])
def test_a_job_that_reaches_its_time_limit_keeps_what_it_had_finished(slurm, limited, local, name, state):
    project, run, kept = limited[name]
    assert len(kept) == 2  # the vectors and the ledger of one shard
    printed = finish(run, project)
    assert slurm.read_state(read_job_ids(project)["00000+1"][0]) == state
    assert re.search(r"WARNING SLURM job \d+ reaches its time limit in \d+ s", printed)
    assert ("error: stopped by SIGTERM; run it again" in printed) == (name == "warned")
    assert "mem_mb=2000" in printed and "runtime=4" in printed  # twice as much, the second time
    assert "1 of 2 shards were finished before" in (project / "results/logs/embed/00000+1.log").read_text()
    assert kept < read_inodes(project)
    assert "partial" not in "".join(leftovers(project / "results"))
    assert select(read_results(project), 2) == select(read_results(local), 2)
