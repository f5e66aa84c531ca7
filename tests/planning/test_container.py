"""What a container is shown: the folders that jobs need, by all their names; and nothing of the image is hidden."""

import pytest
from support.workflow import CONFIG, EMBEDDER, make_shard, run_snakemake

from embedders.errors import ConfigError
from embedders.planning.container import check_image, describe_container


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A disk with shards, and a working folder beside it; Apptainer would not show /tmp by itself."""
    monkeypatch.setattr("embedders.planning.container._SHOWN", ("/proc",))
    for folder in ("disk/shards", "disk/more", "work"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("shards/a.tar", "shards/b.tar", "more/c.tar", "model.bin"):
        (tmp_path / "disk" / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "disk"


def find_binds(files, sources=(), **environment):
    return describe_container(map(str, files), map(str, sources), False, environment)["APPTAINER_BIND"].split(",")


def test_the_folders_of_shards_and_single_sources_are_shown(elsewhere):
    shards = [elsewhere / "shards/a.tar", elsewhere / "shards/b.tar"]
    assert find_binds(shards, [elsewhere / "model.bin"]) == [f"{elsewhere}/model.bin", f"{elsewhere}/shards"]


def test_what_lies_in_the_working_folder_or_in_another_folder_shown_is_not_named_again(elsewhere):
    assert find_binds(["data/a.tar", "results/summary.json"]) == [""]
    assert find_binds([elsewhere / "x.tar", elsewhere / "shards/a.tar"]) == [str(elsewhere)]


def test_what_links_lead_to_is_shown(elsewhere, tmp_path):
    (tmp_path / "work/data").symlink_to(elsewhere / "shards")
    (tmp_path / "work/single").mkdir()
    (tmp_path / "work/single/c.tar").symlink_to(elsewhere / "more/c.tar")
    assert find_binds(["data/a.tar"]) == [f"{elsewhere}/shards"]
    assert find_binds(["single/c.tar"]) == [f"{elsewhere}/more"]
    (tmp_path / "name").symlink_to(elsewhere)
    assert find_binds([tmp_path / "name/shards/a.tar"]) == [f"{elsewhere}/shards", f"{tmp_path}/name/shards"]


def test_an_output_folder_that_is_not_made_yet_is_shown_by_the_one_above(elsewhere):
    assert find_binds([elsewhere / "new/results/summary.json"]) == [str(elsewhere)]


@pytest.mark.parametrize("name", ["TARQUET_LEASE_DIR", "HF_HOME", "TORCH_HOME"])
def test_the_folders_of_leases_and_models_that_the_environment_names_are_shown(elsewhere, name):
    assert find_binds([], **{name: str(elsewhere / "more")}) == [f"{elsewhere}/more"]
    assert find_binds([], **{name: str(elsewhere / "missing")}) == [""]


def test_what_a_user_binds_stays_and_a_job_that_plans_again_adds_nothing(elsewhere):
    once = find_binds([elsewhere / "more/c.tar"], APPTAINER_BIND="/mnt/x:/x")
    assert once == ["/mnt/x:/x", f"{elsewhere}/more"]
    assert find_binds([elsewhere / "more/c.tar"], APPTAINER_BIND=",".join(once)) == once


def test_no_folder_of_the_image_is_hidden(elsewhere):
    packages = elsewhere / "lib/python3.11/site-packages/mine.py"
    packages.parent.mkdir(parents=True)
    packages.touch()
    assert find_binds(["/opt/x.tar", "/usr/x.tar", "/x.tar", "/opt/not/made/yet"], [packages]) == [""]


def test_a_folder_whose_name_apptainer_would_split_is_refused(elsewhere):
    (elsewhere / "a:b").mkdir()
    with pytest.raises(ConfigError, match=r"a:b' cannot be mounted in a container; rename it"):
        find_binds([elsewhere / "a:b/c.tar"])


def test_the_driver_is_shown_where_a_job_may_ask_for_a_gpu(elsewhere):
    assert describe_container([], [], True, {})["APPTAINER_NV"] == "1"
    assert "APPTAINER_NV" not in describe_container([], [], False, {})


def test_an_image_is_a_file_that_is_there_or_an_address(elsewhere):
    check_image(str(elsewhere / "model.bin"))
    check_image("docker://ghcr.io/me/tarquet:1")
    with pytest.raises(ConfigError, match=r"there is no image 'no\.sif'.*apptainer build tarquet\.sif"):
        check_image("no.sif")


@pytest.mark.slow
def test_a_run_without_an_image_says_in_one_line_how_to_build_it(tmp_path):
    make_shard(tmp_path / "data/a.tar")
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    done = run_snakemake(tmp_path, "-n", "--sdm", "apptainer")
    assert done.returncode != 0
    assert "container: there is no image 'tarquet.sif'" in done.stdout
    assert "Traceback" not in done.stdout
    assert run_snakemake(tmp_path, "-n").returncode == 0
