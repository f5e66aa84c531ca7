from dataclasses import fields

import pytest
import yaml
from support.tools import ROOT

from embedders.cli import main
from embedders.errors import ConfigError
from embedders.gpu.terms import Terms
from embedders.planning.config import check_config, name_scores, require_output_dir, take_command_line

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


def test_the_shipped_config_is_sound():
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
        ("shards", [5, [], "", [1], {"a": 1}, {}, {1: "a"}, {"a": []}, {"a": {"b": "c"}}, None]),
        ("output_dir", [5, "", None]),
        ("scores", [5, ["brightness"], {"class": "a:B"}]),
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
        assert "; expected: " in message and "is not of type" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", ["a.tar", "b/*.tar"]),
        ("shards", {"train": "a/*.tar", ".": ["b/*.tar", "c.txt"]}),
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


@pytest.mark.parametrize(
    "text",
    ["output_dir: 2024_01", "output_dir: 2024-01-31", "id_col: yes", "shards: {01: a.tar}", "metadata_columns: [no]"],
)
def test_a_name_that_yaml_reads_as_something_else_is_told_to_be_quoted(text):
    message = message_of(**yaml.safe_load(text))
    assert "as a number, 2024-01-31 as a date, yes as true: quote such a name, for example " in message
    assert "quote" not in message_of(threads=1.5) + message_of(shards=[]) + message_of(gpu=True)
    assert "quote" not in message_of(near_copies=0.96) + message_of(embedder=5)


def test_the_home_folder_is_written_out_where_a_file_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    files = {"output_dir": "~/out", "container": "~/a.sif"}
    classes = {"embedder": {"class": "~/a.py:A"}, "scores": [{"class": "~/b.py:B"}]}
    config = check_config(LEAST | files | classes, SCHEMA)
    assert (config["output_dir"], config["container"]) == ("/home/me/out", "/home/me/a.sif")
    assert (config["embedder"]["class"], config["scores"][0]["class"]) == ("/home/me/a.py:A", "/home/me/b.py:B")


@pytest.mark.parametrize(
    ("output_dir", "reason"),
    [
        ("file", r"FOLDER/file' is not a folder; move it away"),
        ("file/below", r"FOLDER/file' is not a folder; move it away"),
        ("dangling", r"FOLDER/dangling' is not a folder; move it away"),
        ("a{b}", "has a brace"),
        ("a\nb", "has a control character"),
        ("$SCRATCH/a", r"has a \$, and variables are not expanded"),
        ("-a", "begins with -"),
        (".", "it is the working folder"),
        ("data/..", "it is the working folder"),
    ],
)
def test_an_output_folder_that_cannot_be_is_refused(tmp_path, monkeypatch, output_dir, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    require_output_dir("new/below")
    require_output_dir('it\'s [a] "b" ü')
    with pytest.raises(ConfigError, match=reason.replace("FOLDER", str(tmp_path))) as caught:
        require_output_dir(output_dir)
    assert str(caught.value).startswith(f"config: output_dir is {output_dir!r}; expected a folder")


def test_scores_have_folders_that_readers_see_and_names_that_snakemake_takes():
    score = {"class": "a:B"}
    assert list(name_scores([score, score | {"args": {"pred_column": "_p=1"}}])) == ["B", "%5Fp%3D1"]
    for name in ("a/b", "", 5, "a{b}"):
        with pytest.raises(ConfigError, match="expected a valid folder name"):
            name_scores([score | {"args": {"pred_column": name}}])


def test_numbers_in_a_mapping_of_the_command_line_are_numbers():
    argument = "near_copies={cosine: 0.96}"
    parsed = {"near_copies": {"cosine": "0.96"}}  # as Snakemake parses it
    config = take_command_line({"id_col": "url"}, [], [argument], parsed, SCHEMA)
    assert config == {"id_col": "url", "near_copies": {"cosine": 0.96}}
    with pytest.raises(ConfigError, match=r"--config: near_copies='\{cosine: 0.96' is not YAML; expected a value"):
        take_command_line({}, [], ["near_copies={cosine: 0.96"], {}, SCHEMA)
