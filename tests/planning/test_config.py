import os
import shlex
from dataclasses import fields

import pytest
from support.tools import ROOT

from embedders.cli import main
from embedders.errors import ConfigError
from embedders.gpu.terms import Terms
from embedders.planning.config import check_config, find_shards, write_device_options

SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
LEAST = {"shards": "*.tar", "embedder": {"class": "embedders:TimmImageEmbedder"}}


def message_of(**changes):
    with pytest.raises(ConfigError) as caught:
        check_config(LEAST | changes, SCHEMA)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_filled_in_and_values_kept():
    config = check_config(LEAST | {"threads": 7}, SCHEMA)
    assert config["threads"] == 7
    assert config["embedder"] == {"class": "embedders:TimmImageEmbedder", "args": {}}
    assert (config["id_col"], config["device"], config["embedding_dtype"]) == ("__key__", "auto", "float32")
    assert config["max_failed_fraction"] == 0.1


@pytest.mark.parametrize(
    ("values", "gpus"),
    [({}, 1), ({"device": "gpu"}, 1), ({"device": "cpu"}, 0), ({"device": "cpu", "gpu": 1}, 1), ({"gpu": 0}, 0)],
)
def test_a_job_asks_for_a_gpu_unless_it_computes_on_the_cpu_or_gpu_is_set(values, gpus):
    assert check_config(LEAST | values, SCHEMA)["gpu"] == gpus


def test_a_default_is_the_same_in_config_yaml_and_on_the_command_line():
    defaults = check_config(LEAST, SCHEMA)
    options = main.commands["embed"].make_context("embed", ["a.tar", "a.parquet", "--embedder", "a:B"]).params
    shared = (options.keys() & defaults.keys()) - {"embedder", "threads"}  # by hand, a process takes all cores
    assert shared >= {"id_col", "embedding_dtype", "device", *(field.name for field in fields(Terms))}
    assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}


def test_the_options_of_the_device_are_those_of_the_command_line():
    config = check_config(LEAST | {"gpu_wait_timeout_s": 7.5, "jobs_per_gpu": 2}, SCHEMA)
    words = shlex.split(write_device_options(config))
    assert words[:2] == ["--device=auto", "--gpu-wait-timeout-s=7.5"]
    assert len(words) == 5 and words[-1] == "--jobs-per-gpu=2"
    known = {name for option in main.commands["embed"].params for name in option.opts}
    assert {word.partition("=")[0] for word in words} <= known


def test_the_shipped_config_is_sound():
    import yaml

    check_config(yaml.safe_load((ROOT / "config.yaml").read_text()), SCHEMA)


def test_an_unknown_key_is_refused_by_name_with_the_nearest():
    assert message_of(thread=4) == "config: unknown key 'thread'; did you mean 'threads'?"
    assert "unknown key 'zzz'; expected one of: shards, output_dir" in message_of(zzz=1)
    nested = message_of(embedder={"class": "a:B", "arg": {}})
    assert nested == "config: unknown key 'embedder.arg'; did you mean 'args'?"


def test_a_missing_key_is_named():
    assert message_of(embedder={}) == "config: key 'embedder.class' is missing; set it"
    with pytest.raises(ConfigError, match="key 'shards' is missing"):
        check_config({"embedder": {"class": "a:B"}}, SCHEMA)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("shards", [5, [], "", [1], {"a": 1}, None]),
        ("output_dir", [5, "", None]),
        ("embedder", ["embedders:TimmImageEmbedder", None, {"class": 5}, {"class": "a:B", "args": []}]),
        ("id_col", [5, "", None]),
        ("metadata_columns", ["some", 5, [1], ["a", "a"], {"a": "int"}, None]),
        ("embedding_dtype", ["float64", 32, None]),
        ("max_failed_fraction", [-0.1, 1.1, "0.1", None]),
        ("accept_damaged_shards", ["yes", 1, None]),
        ("device", ["cuda", "cuda:0", None]),
        ("gpu", [-1, 2, "1", True, 0.5]),
        ("threads", [0, "4", 1.5, True]),
        ("mem_mb", [0, "8GB"]),
        ("runtime", [0, "1h"]),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_what_was_expected(key, values):
    for value in values:
        message = message_of(**{key: value})
        assert message.startswith(f"config: {key}"), message
        assert "; expected: " in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", ["a.tar", "b/*.tar"]),
        ("metadata_columns", "all"),
        ("metadata_columns", ["a", "b"]),
        ("metadata_columns", {"a": "int64", "b": "bool"}),
        ("max_failed_fraction", 0),
        ("max_failed_fraction", 1),
        ("gpu", 0),
    ],
)
def test_every_documented_form_is_taken(key, value):
    assert check_config(LEAST | {key: value}, SCHEMA)[key] == value


# Which shards a configuration names.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/00.tar", "data/01.tar", "data/sub/00.tar", "other/00.tar", "other/x.tar.gz", "other/y.tgz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "notes.txt").touch()
    return tmp_path


def test_a_glob_names_shards_by_their_path_below_its_fixed_part(folder):
    assert find_shards("data/*.tar") == {"00": "data/00.tar", "01": "data/01.tar"}
    assert find_shards("data/**/*.tar") == {"00": "data/00.tar", "01": "data/01.tar", "sub/00": "data/sub/00.tar"}
    assert find_shards("*/*.tar") == {"data/00": "data/00.tar", "data/01": "data/01.tar", "other/00": "other/00.tar"}
    assert find_shards(f"{folder}/data/0[1].tar") == {"01": f"{folder}/data/01.tar"}


def test_compressed_shards_lose_their_whole_suffix(folder):
    assert find_shards("other/*") == {"00": "other/00.tar", "x": "other/x.tar.gz", "y": "other/y.tgz"}


def test_braces_lists_and_text_files(folder):
    assert find_shards("data/{00..01}.tar") == {"00": "data/00.tar", "01": "data/01.tar"}
    assert find_shards("{data,other}/00.tar") == {"data/00": "data/00.tar", "other/00": "other/00.tar"}
    assert find_shards(["data/01.tar", "other/x.tar.gz"]) == {"01": "data/01.tar", "x": "other/x.tar.gz"}
    (folder / "list.txt").write_text("# mine\n data/01.tar \n\nother/{x.tar.gz,y.tgz}\n")
    assert find_shards("list.txt") == {"01": "data/01.tar", "x": "other/x.tar.gz", "y": "other/y.tgz"}


def test_shards_of_one_name_from_different_folders_do_not_collide(folder):
    found = find_shards(["data/*.tar", "other/*.tar", "data/sub/*.tar"])
    assert found == {
        **{"01": "data/01.tar", "data/00": "data/00.tar", "other/00": "other/00.tar"},
        **{"sub/00": "data/sub/00.tar"},
    }


def test_a_shard_that_is_named_twice_is_there_once(folder):
    assert list(find_shards(["data/00.tar", "./data/00.tar", "data/*.tar"])) == ["00", "01"]


def test_shards_that_cannot_be_told_apart_are_refused(folder):
    (folder / "data" / "00.tar.gz").touch()
    with pytest.raises(ConfigError, match=r"'data/00.tar' and 'data/00.tar.gz' would both be named '00'"):
        find_shards("data/*")


def test_no_name_leads_out_of_the_results(folder, monkeypatch):
    monkeypatch.chdir(folder / "data")
    assert find_shards("{../other,sub}/00.tar") == {"other/00": "../other/00.tar", "sub/00": "sub/00.tar"}
    assert find_shards("../other/00.tar") == {"00": "../other/00.tar"}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("none/*.tar", "'none/\\*.tar' matches no file that ends in .tar, .tar.gz, .tgz"),
        ("data/*.txt*", "matches no file that ends in .tar"),
        ("data/02.tar", "there is no file 'data/02.tar'"),
        ("data/{00..02}.tar", "there is no file 'data/02.tar'"),
        ("data/{00..01.tar", "Unbalanced"),
        ("data/00.zip", "'data/00.zip': expected a file that ends in"),
        ("data", "'data': expected a file that ends in"),
        ("none.txt", "list 'none.txt' cannot be read"),
        ("empty.txt", "list 'empty.txt' is empty"),
        ("binary.txt", "list 'binary.txt' cannot be read"),
    ],
)
def test_a_pattern_that_names_nothing_is_one_line(folder, pattern, reason):
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=reason) as caught:
        find_shards(pattern)
    assert "\n" not in str(caught.value)


def test_a_shard_that_was_added_is_found_without_a_new_process(folder):
    with pytest.raises(ConfigError):
        find_shards("data/02.tar")
    (folder / "data" / "02.tar").touch()
    assert find_shards("data/02.tar") == {"02": "data/02.tar"}


def test_a_hundred_thousand_shards_are_found_by_one_listing(tmp_path, monkeypatch):
    # On a network file system a look-up per shard takes minutes: nothing may ask for the files one by one.
    names = [f"{n:05d}.tar" for n in range(100_000)]
    (tmp_path / "00000.tar").touch()
    listings = []
    monkeypatch.setattr(
        "embedders.planning.config._list_folder", lambda folder: listings.append(folder) or frozenset(names)
    )
    lookups = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: lookups.append(path) or stat(path, *a, **k))
    found = find_shards(f"{tmp_path}/{{00000..99999}}.tar")
    monkeypatch.undo()
    assert len(found) == 100_000
    assert listings == [str(tmp_path)]
    assert len(lookups) < 10
    assert list(found.items())[99_999] == ("99999", f"{tmp_path}/99999.tar")
