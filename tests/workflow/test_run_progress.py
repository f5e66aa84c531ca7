"""The line that says how far a run is: counted from real outputs, and said by a real run."""

import re

import pytest
from mean_color import MeanColor
from support.tools import make_image, make_tar, wait_until
from support.workflow import make_shard, start_held_run

from embedders import embed_shard
from embedders.planning.progress import RunProgress


@pytest.fixture
def embed(tmp_path):
    def embed(name, members):
        (tmp_path / "out/embeddings" / name).parent.mkdir(parents=True, exist_ok=True)
        make_tar(tmp_path / "s.tar", members)
        embed_shard(
            MeanColor(),
            tmp_path / "s.tar",
            tmp_path / f"out/embeddings/{name}.parquet",
            max_failed_fraction=1,
            device="cpu",
        )

    return embed


def test_shards_images_and_failed_samples_are_counted_once(tmp_path, embed):
    progress = RunProgress(f"{tmp_path}/out", 4, ["a", "more/b", "c"])
    assert not progress.look()
    embed("a", {"1.jpg": make_image(), "2.jpg": make_image(1), "3.jpg": b"broken"})
    assert progress.look()
    assert progress.describe().startswith("progress: 2 of 4 shards, 2 images at ")
    assert " images/s, 1 failed, about " in progress.describe()
    assert not progress.look()
    embed("more/b", {"1.jpg": make_image()})
    embed("c", {"1.jpg": make_image()})
    assert progress.look()
    assert progress.describe().startswith("progress: 4 of 4 shards, 4 images at ")
    assert progress.describe().endswith("1 failed")


def test_the_time_to_go_is_that_of_the_shards_left(tmp_path, embed, monkeypatch):
    clock = iter([0, 60])
    monkeypatch.setattr("embedders.planning.progress.monotonic", lambda: next(clock))
    progress = RunProgress(f"{tmp_path}/out", 4, ["a", "b", "c", "d"])
    embed("a", {"1.jpg": make_image()})
    progress.look()
    assert progress.describe() == "progress: 1 of 4 shards, 1 images at 0 images/s, 0 failed, about 3 min to go"


def test_an_output_that_is_made_again_counts_once_it_is_new(tmp_path, embed):
    embed("a", {"1.jpg": make_image()})
    embed("b", {"1.jpg": make_image()})
    progress = RunProgress(f"{tmp_path}/out", 2, ["a", "b"])
    assert not progress.look()
    embed("b", {"1.jpg": make_image(1)})
    assert progress.look() and not progress.look()
    assert progress.describe().startswith("progress: 1 of 2 shards, 1 images at ")


def test_an_output_that_cannot_be_read_is_no_error(tmp_path):
    folder = tmp_path / "out/embeddings"
    progress = RunProgress(f"{tmp_path}/out", 1, ["a"])
    folder.mkdir(parents=True)
    (folder / "a.parquet").touch()
    assert progress.look()
    assert progress.describe() == "progress: 1 of 1 shards"


def test_a_run_says_how_far_it_is(project):
    for name in ("d", "e"):
        make_shard(project / f"data/{name}.tar")
    run, _ = start_held_run(project)
    printed, outputs = project / "printed.txt", project / "results/embeddings"
    (project / "hold").unlink()
    wait_until(lambda: len(list(outputs.glob("*.parquet"))) > 2, run)
    (project / "hold").touch()  # those that are not there yet wait, so that the run is not over before the line
    wait_until(lambda: "progress: " in printed.read_text(), run)
    (project / "hold").unlink()
    assert run.wait(300) == 0
    line = next(line for line in printed.read_text().splitlines() if line.startswith("progress: "))
    assert re.fullmatch(
        r"progress: [34] of 5 shards, \d+ images at \d+ images/s, 0 failed, about \d+ s to go", line
    ), line
