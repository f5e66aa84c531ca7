"""`check`, as a user types it; each kind of wrong embedder: test_contract.py."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.tools import MEAN_COLOR, ROOT, clean_environment, make_image, make_shard, make_tar, run_cli

from embedders.checks.shard_statistics import MAX_SAMPLES, survey_shard
from embedders.cli import main
from embedders.output.failed import FailureKind


def check(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments), "--device", "cpu"])


def test_a_sound_embedder_on_good_shards_and_how_long_all_take(tmp_path):
    for number in range(3):
        make_shard(tmp_path / f"{number}.tar", 5)
    job = run_cli("check", MEAN_COLOR, "--shard", tmp_path / "*.tar", "--device", "cpu")
    assert job.returncode == 0, job.stderr
    lines = job.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok")] == lines[-1:]
    assert "5 samples, 5 with an image; 100% JPEG; 1 to 1 kB" in lines[-2]
    assert "40 x 30 pixels in the median; members 5 .jpg, 5 .json" in lines[-2]
    assert lines[-1].split()[:9] == ["all", "3", "shards", "of", "about", "15", "images", "in", "all:"]
    assert "\x1b" not in job.stdout


def test_the_same_for_a_program(tmp_path):
    make_shard(tmp_path / "s.tar", 4)
    said = json.loads(check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--json").stdout)
    assert list(said) == ["wrong", "findings", "shards", "shard", "estimate"]
    assert (said["wrong"], said["shards"]) == (0, 1)
    assert set(said["findings"][0]) == {"subject", "message", "is_wrong"}
    assert said["shard"]["formats"] == {"JPEG": 4}
    assert said["shard"]["suffixes"] == {"jpg": 4, "json": 4}
    assert said["estimate"]["images"] == 4
    assert said["estimate"]["output_bytes"] == 4 * 3 * 4
    assert said["estimate"]["images_per_s"] == min(
        said["estimate"][part] for part in ("loaded_per_s", "embedded_per_s")
    )


def test_without_a_class_what_the_configuration_says_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shard(tmp_path / "s.tar", 4)
    (tmp_path / "config.yaml").write_text(
        f"shards: '*.tar'\nembedder: {{class: '{MEAN_COLOR}'}}\nmetadata_columns: [nothing]\ndevice: cpu\n"
    )
    (tmp_path / "other.yaml").write_text(f"shards: none.tar\nembedder: {{class: '{MEAN_COLOR}'}}\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")

    def run(*arguments):
        return CliRunner().invoke(main, ["check", *arguments])

    found = json.loads(run("--json").stdout)
    assert (found["wrong"], found["shards"], found["estimate"]["images"]) == (1, 1, 4)
    wrong = [finding["message"] for finding in found["findings"] if finding["is_wrong"]]
    assert "'nothing'" in wrong[0]
    for arguments, message in [
        (["--configfile", "other.yaml"], "error: shards: there is no file 'none.tar'"),
        (["--configfile", "none.yaml"], "error: there is no file 'none.yaml'; name the configuration"),
        (["--configfile", "list.yaml"], "error: 'list.yaml' has no keys; expected shards"),
        (["--configfile", "bad.yaml"], "error: 'bad.yaml' cannot be read: while parsing"),
        (["--device", "cpu"], "error: --device is for an EMBEDDER that is named; without one, config.yaml decides"),
        ([MEAN_COLOR], "error: --shard is missing; expected a shard"),
    ]:
        done = run(*arguments)
        assert done.exit_code == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_a_class_prints_is_not_part_of_the_json(tmp_path):
    make_shard(tmp_path / "s.tar", 4)
    (tmp_path / "talks.py").write_text(
        "from mean_color import MeanColor\nclass Talks(MeanColor):\n"
        "    def preprocess(self, image):\n        print('hello')\n        return super().preprocess(image)\n"
    )
    result = check(f"{tmp_path}/talks.py:Talks", "--shard", tmp_path / "s.tar", "--json")
    assert json.loads(result.stdout)["wrong"] == 0
    assert "hello" in result.stderr


@pytest.mark.slow
def test_a_terminal_gets_colours_unless_it_wants_none(tmp_path):
    make_shard(tmp_path / "s.tar", 2)
    command = f"{sys.executable} -m embedders check {MEAN_COLOR} --shard {tmp_path}/s.tar --device cpu"
    for unwanted, colored in (("", True), ("1", False)):
        options = {"env": clean_environment() | {"NO_COLOR": unwanted, "TERM": "xterm"}, "cwd": ROOT}
        done = subprocess.run(["script", "-qc", command, "/dev/null"], capture_output=True, text=True, **options)
        assert "\x1b[32m" in done.stdout if colored else "\x1b" not in done.stdout, done.stdout
        assert "the same vectors a second time" in done.stdout


def test_samples_that_will_fail_are_wrong_each_kind_with_what_to_do(tmp_path):
    image = make_image()
    members = [("a.jpg", image), ("b.json", {}), ("c.jpg", make_image(1)), ("e.1.jpg", image), ("e.2.jpg", image)]
    members += [("a.png", image), ("LICENSE", b""), ("d.jpg", b""), ("f.jpg", make_image(2)[:400])]
    members += [("g.jpg", image), ("g.json", b"{"), ("h.jpg", image), ("h.jpg", image), ("i.jpg", b"<html>")]
    make_tar(tmp_path / "s.tar", members)
    result = check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--metadata-columns", '"all"')
    assert result.exit_code == 1
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    kinds = ("no_single_image", "repeated_key", "repeated_member", "bad_name", "undecodable", "bad_metadata")
    assert sorted(kind for kind in kinds for line in wrong if f"will fail, {kind}, for example" in line) == sorted(
        kinds
    )
    assert all(FailureKind(kind).fix in line for kind in kinds for line in wrong if kind in line)
    assert any("3 of 11 samples will fail, undecodable, for example 'd'" in line for line in wrong)
    assert f"{len(wrong)} of " in result.stderr and "findings are wrong" in result.stderr


def test_damage_is_found_and_what_is_whole_is_tried(tmp_path):
    path = Path(make_shard(tmp_path / "s.tar", 8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = check(MEAN_COLOR, "--shard", path)
    assert result.exit_code == 1
    assert "damaged_tar" in result.stdout and "accept_damaged_shards: true" in result.stdout
    assert "the same vector alone as in a batch" in result.stdout


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
    assert "4 samples, 4 with an image" in result.stdout


def test_a_shard_that_is_not_there_is_one_line(tmp_path):
    result = check(MEAN_COLOR, "--shard", tmp_path / "none.tar")
    assert result.exit_code == 1
    assert "none.tar" in result.stderr.splitlines()[-1]


def test_a_survey_counts_suffixes_formats_and_sizes(tmp_path):
    image, drawing = make_image(), make_image(form="PNG", size=(64, 48))
    path = make_tar(tmp_path / "s.tar", {"a.jpg": image, "a.txt": b"caption", "b.jpg": drawing, "b.txt": b"caption"})
    survey = survey_shard(path)
    assert survey.suffixes == {"jpg": 2, "txt": 2}
    assert survey.formats == {"JPEG": 1, "PNG": 1}
    assert survey.image_bytes == [len(image), len(drawing)]
    assert survey.sides == [(40, 30), (64, 48)]


def test_of_a_huge_shard_the_first_part_is_read_and_said_so(tmp_path):
    path = tmp_path / "huge.tar"
    header, images = tarfile.TarInfo(), [make_image(seed) for seed in range(2)]
    header.size = max(map(len, images))
    stride = 512 + -(-header.size // 512) * 512
    with path.open("wb") as file:
        for number in range(MAX_SAMPLES + 2):
            header.name = f"{number:05}.jpg"
            file.write(header.tobuf() + images[number % 2].ljust(stride - 512, b"\0"))
        file.truncate((40 << 30) - 512)  # the rest, a hole of 40 GB, would take minutes to read
        file.seek(0, os.SEEK_END)
        file.write(b"x" * 512)
    survey = survey_shard(str(path))
    assert (survey.samples, survey.total_bytes) == (MAX_SAMPLES, 40 << 30)
    assert survey.read_bytes == MAX_SAMPLES * stride
    result = check(MEAN_COLOR, "--shard", path)
    assert result.exit_code == 0, result.output
    assert f"2000 samples in its first {MAX_SAMPLES * stride / 1e6:.0f} MB" in result.stdout
    assert f"about {(40 << 30) / stride:.0f} images in all" in result.stdout


def test_the_lost_end_of_a_huge_shard_is_noticed_without_reading_all_of_it(tmp_path):
    members = {f"{number:05}.jpg": b"x" * 1000 for number in range(MAX_SAMPLES + 2)}
    path = Path(make_tar(tmp_path / "s.tar", members))
    assert survey_shard(str(path)).problems == {"undecodable": MAX_SAMPLES}
    os.truncate(path, path.stat().st_size + (8 << 20))
    assert survey_shard(str(path)).problems == {"undecodable": MAX_SAMPLES, "damaged_tar": 1}


def test_a_column_that_no_sample_fills_is_wrong_with_the_nearest_field(tmp_path):
    make_tar(tmp_path / "s.tar", {"1.jpg": make_image(), "1.json": {"width": 1, "none": None}, "1.cls": b"7"})
    columns = {"width": "int64", "cls": "int64", "widht": "int64", "clss": "string", "none": "string"}
    result = check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--metadata-columns", json.dumps(columns))
    assert result.exit_code == 1
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert [line.partition("no sample has the field ")[2].partition(":")[0] for line in wrong] == [
        "'widht'", "'clss'", "'none'",
    ]  # fmt: skip
    assert "did you mean 'width'?" in wrong[0] and "did you mean 'cls'?" in wrong[1]
    assert "there are cls, jpg, width" in wrong[2]
    assert check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--metadata-columns", '["width", "cls"]').exit_code == 0


def test_values_that_do_not_have_the_type_of_their_column_are_counted(tmp_path):
    members = {}
    for number, width in enumerate([1, 2.0, "3", 4.5, None, 2**70]):
        members |= {f"{number}.jpg": make_image(number), f"{number}.json": {"width": width}}
    shard = make_tar(tmp_path / "s.tar", members)
    result = check(MEAN_COLOR, "--shard", shard, "--metadata-columns", '{"width": "int64"}')
    assert result.exit_code == 1
    assert "3 of 6 samples will fail, bad_metadata, for example '2': width is '3'; expected int64;" in result.stdout
    assert check(MEAN_COLOR, "--shard", shard, "--metadata-columns", '["width"]').exit_code == 0


def test_columns_that_a_loader_of_the_users_own_fills_are_not_looked_for_in_the_tar(tmp_path):
    make_shard(tmp_path / "s.tar", 3)
    (tmp_path / "own.py").write_text(
        "from mean_color import MeanColor\n"
        "class Own(MeanColor):\n"
        "    def load_dataset_shard(self, tar_path):\n"
        "        for batch, metadata in super().load_dataset_shard(tar_path):\n"
        "            yield batch, [{**sample, 'made': 1} for sample in metadata]\n"
    )
    result = check(f"{tmp_path}/own.py:Own", "--shard", tmp_path / "s.tar", "--metadata-columns", '["made"]')
    assert result.exit_code == 0, result.stdout
    result = check(f"{tmp_path}/own.py:Own", "--shard", tmp_path / "s.tar", "--metadata-columns", '{"made": "bool"}')
    assert result.exit_code == 1
    assert "3 of the first 3 samples will fail, bad_metadata, for example '00000': made is 1;" in result.stdout


def test_a_sidecar_that_nobody_needs_is_no_problem_and_one_that_is_needed_is(tmp_path):
    members = {f"{n}.{suffix}": content for n in range(4) for suffix, content in
               (("jpg", make_image(n)), ("json", b"[1, 2]"), ("txt", b"caf\xe9"))}  # fmt: skip
    make_tar(tmp_path / "s.tar", members)
    assert check(MEAN_COLOR, "--shard", tmp_path / "s.tar").exit_code == 0
    result = check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--metadata-columns", '["caption"]')
    assert "4 of 4 samples will fail, bad_metadata" in result.stdout


def test_of_several_images_the_suffix_chooses(tmp_path):
    members = {f"{n}.{suffix}": make_image(n) for n in range(4) for suffix in ("left.jpg", "right.jpg")}
    make_tar(tmp_path / "s.tar", members)
    assert "2 images under one key (left.jpg, right.jpg)" in check(MEAN_COLOR, "--shard", tmp_path / "s.tar").stdout
    assert check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--image-suffix", "left.jpg").exit_code == 0
    result = check(MEAN_COLOR, "--shard", tmp_path / "s.tar", "--image-suffix", ".jpg")
    assert "image_suffix: '.jpg'; expected a suffix without the dot" in result.stderr
