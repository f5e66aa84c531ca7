"""`check`, as a user types it; each kind of wrong embedder: test_contract.py."""

import json

import pytest
from click.testing import CliRunner
from tools import MEAN_COLOR, make_image, make_shard, make_tar, run_cli

from embedders.cli import main
from embedders.survey import survey_shard


def check(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments), "--device", "cpu"])


def test_a_sound_embedder_on_good_shards_and_how_long_all_take(tmp_path):
    for number in range(3):
        make_shard(tmp_path / f"{number}.tar", 5)
    job = run_cli("check", MEAN_COLOR, "--shard", tmp_path / "*.tar", "--device", "cpu")
    assert job.returncode == 0, job.stderr
    lines = job.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok")] == lines[-1:]
    assert "5 samples, 5 images of 1 kB in the mean: 100% .jpg; beside them .json" in lines[-2]
    assert lines[-1].startswith("estimate: 3 shards of about 15 images in all; at ")


def test_the_same_for_a_program(tmp_path):
    make_shard(tmp_path / "s.tar", 4)
    said = json.loads(check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--json").stdout)
    assert said["wrong"] == 0
    assert said["shard"]["formats"] == {"jpg": 4}
    assert said["estimate"]["images"] == 4
    assert said["estimate"]["output_bytes"] == 4 * 3 * 4


def test_samples_that_will_fail_are_wrong_each_kind_with_what_to_do(tmp_path):
    image = make_image()
    members = [("a.jpg", image), ("b.json", {}), ("c.jpg", make_image(1))]
    members += [("a.png", image), ("LICENSE", b""), ("d.jpg", b"")]
    make_tar(tmp_path / "s.tar", members)
    result = check(MEAN_COLOR, "--shard", tmp_path / "s.tar")
    assert result.exit_code == 1
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    kinds = ("no_single_image", "repeated_key", "bad_name", "empty_image")
    assert sorted(kind for kind in kinds for line in wrong if kind in line) == sorted(kinds)
    assert "4 of 12 findings are wrong" in result.stderr


@pytest.mark.parametrize(
    ("embedder", "words"),
    [
        (f"{MEAN_COLOR}s", "did you mean 'MeanColor'?"),
        ("nowhere.py:Embedder", "there is no file 'nowhere.py'"),
        ("embedders:ImageEmbedder", "does not define load_embedding_model"),
    ],
)
def test_a_class_that_cannot_be_built_is_named_and_the_shard_is_looked_at_all_the_same(tmp_path, embedder, words):
    make_shard(tmp_path / "s.tar", 4)
    result = check(embedder, "--shard", tmp_path / "s.tar")
    assert result.exit_code == 1
    assert words in result.stdout
    assert "4 samples, 4 images" in result.stdout


def test_a_shard_that_is_not_there_is_one_line(tmp_path):
    result = check(MEAN_COLOR, "--shard", tmp_path / "none.tar")
    assert result.exit_code == 1
    assert "none.tar" in result.stderr.splitlines()[-1]


def test_a_survey_counts_suffixes_and_sizes(tmp_path):
    image = make_image()
    path = make_tar(tmp_path / "s.tar", {"a.jpg": image, "a.txt": b"caption", "b.png": image, "b.txt": b"caption"})
    survey = survey_shard(path)
    assert survey.suffixes == {"jpg": 1, "png": 1, "txt": 2}
    assert survey.formats == {"jpg": 1, "png": 1}
    assert survey.image_bytes == [len(image)] * 2
