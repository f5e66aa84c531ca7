"""The command lines of jobs: each option is one that the command takes, and has the value of config.yaml."""

import shlex

import pytest
from support.tools import ROOT

from embedders.cli import main
from embedders.planning.commands import write_device_options, write_embed_options, write_score_options, write_shards
from embedders.planning.config import check_config
from embedders.planning.recipes import DECIDING_KEYS

SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
LEAST = {"shards": "*.tar", "embedder": {"class": "it's.py:A", "args": {"a b": "'\""}}}


def parse(command, words):
    return main.commands[command].make_context(command, shlex.split(words)).params


def test_the_options_of_the_device_are_those_of_the_command_line():
    config = check_config(LEAST | {"gpu_wait_timeout_s": 7.5, "jobs_per_gpu": 2}, SCHEMA)
    words = shlex.split(write_device_options(config))
    assert words[:2] == ["--device=auto", "--gpu-wait-timeout-s=7.5"]
    assert len(words) == 5 and words[-1] == "--jobs-per-gpu=2"
    known = {name for option in main.commands["embed"].params for name in option.opts}
    assert {word.partition("=")[0] for word in words} <= known


@pytest.mark.parametrize("columns", ["all", ["a", "b"], {"a": "int64"}])
def test_the_options_of_vectors_are_read_as_they_were_meant(columns):
    values = {
        "id_col": "{x} $y",
        "image_suffix": "left.png",
        "metadata_columns": columns,
        "embedding_dtype": "float16",
    }
    assert set(values) == set(DECIDING_KEYS)
    values |= {"accept_damaged_shards": True, "max_failed_fraction": 0.5}
    config = check_config(LEAST | values, SCHEMA)
    options = write_embed_options(config, "my results", {"class": "it's"})
    found = parse("embed", f"{write_shards([('a.tar', 'a.parquet', 'a.ledger')])} {options}")
    assert (
        found.items()
        >= (values | {"record": "my results", "recipe": {"class": "it's"}, "ledger": "a.ledger"}).items()
    )
    assert (found["embedder"], found["embedder_args"]) == ("it's.py:A", {"a b": "'\""})


def test_the_options_of_a_score_are_read_as_they_were_meant():
    score = {"class": "b.py:B", "args": {"pred_column": "it's"}}
    options = write_score_options(check_config(LEAST, SCHEMA), score, "my results", {"class": "B"})
    found = parse("score", f"a.parquet s.parquet {options}")
    assert (found["classifier"], found["classifier_args"]) == ("b.py:B", {"pred_column": "it's"})
    assert (found["record"], found["recipe"]) == ("my results", {"class": "B"})


def test_shards_of_any_name_are_words_of_their_own():
    paths = [(f"{name}.tar", f"{name}.parquet", f"{name}.ledger") for name in ("it's $HOME", "[b]; c", "./-d")]
    found = parse("embed", f"{write_shards(paths, addition='p')} --embedder a:B")
    assert (found["shard"], found["output"], found["ledger"]) == paths[0]
    assert list(found["also"]) == paths[1:]
    assert found["addition"] == "p"
