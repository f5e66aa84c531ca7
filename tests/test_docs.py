"""What the README says is so: its table is the schema's, its commands exist, its Python runs."""

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from torchvision.models import resnet18

from embedders import embed_shard
from embedders.cli import main
from embedders.config import check_config
from embedders.locate import build_embedder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCHEMA_PATH = ROOT / "workflow/schemas/config.schema.yaml"
TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
}


def find_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# The table of config.yaml's keys


def describe_type(rules):
    if "anyOf" in rules:
        return ", ".join(describe_type(choice) for choice in rules["anyOf"])
    values = rules.get("enum", [rules["const"]] if "const" in rules else [])
    return ", ".join(f"`{value}`" for value in values) or TYPES[rules["type"]]


def list_keys(schema, prefix=""):
    for key, rules in schema["properties"].items():
        if "properties" in rules:
            yield from list_keys(rules, f"{prefix}{key}.")
        else:
            default = f"`{json.dumps(rules['default'])}`" if "default" in rules else "must be set"
            cells = (f"`{prefix}{key}`", describe_type(rules), default, " ".join(rules["description"].split()))
            yield f"| {' | '.join(cells)} |"


def test_the_table_of_keys_is_the_schema():
    rows = list_keys(yaml.safe_load(SCHEMA_PATH.read_text()))
    table = "\n".join(["| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows])
    assert table in README, f"README.md, Configuration: let the table be\n\n{table}\n"


def test_the_shipped_configurations_keep_to_the_schema():
    for path in (ROOT / "config.yaml", ROOT / "examples/demo/config.yaml"):
        check_config(yaml.safe_load(path.read_text()), SCHEMA_PATH)


def test_every_kind_of_failure_is_explained():
    source = "\n".join(path.read_text() for path in (ROOT / "embedders").glob("*.py"))
    kinds = set(
        re.findall(r"""(?:problem ?= ?\(\s*|\bfail\(|FailedSample\(key, |or \(|after_damage = \()"(\w+)",""", source)
    )
    assert {"undecodable", "repeated_key", "not_loaded", "bad_name", "damaged_tar"} <= kinds, (
        "the pattern above finds no kinds"
    )
    missing = {kind for kind in kinds if f"`{kind}`" not in README}
    assert not missing, f"README.md, What a run makes: name the kinds {sorted(missing)}"


# Commands


def test_every_make_target_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (run|setup|\w+)(?=[`\n])", "\n".join(re.findall(r"`make .*?`", README))))
    named |= {
        line.split()[1] for block in find_blocks("sh") for line in block.splitlines() if line.startswith("make ")
    }
    assert named >= {"run", "test", "setup"}
    assert named <= targets


def test_every_snakemake_option_exists():
    known = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True).stdout
    commands = re.findall(r"`?(snakemake (?:-|retry)[^`\n#]*)", README)
    options = {word for command in commands for word in shlex.split(command) if word.startswith("-")}
    assert {"-n", "--cores", "--resources", "--configfile", "--unlock"} <= options
    assert not {option for option in options if not re.search(rf"(^|[\s,]){option}\b", known)}


def test_every_command_of_the_package_exists():
    commands = re.findall(r"python -m embedders (\w+)", README)
    assert commands
    for command in commands:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# Python


def make_shard(path):
    with tarfile.open(path, "w") as tar:
        for number, color in enumerate(["red", "orange", "blue"]):
            image = io.BytesIO()
            Image.new("RGB", (64, 48), color).save(image, "JPEG")
            info = tarfile.TarInfo(f"{number:04}.jpg")
            info.size = image.tell()
            tar.addfile(info, io.BytesIO(image.getvalue()))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder as the README assumes it: a shard embedded with the class that it shows."""
    folder = tmp_path_factory.mktemp("project")
    source = next(block for block in find_blocks("python") if "# my_embedder.py" in block)
    (folder / "my_embedder.py").write_text(source)
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    make_shard(folder / "00000.tar")
    embedder = build_embedder(f"{folder}/my_embedder.py:MyEmbedder", {"weights_path": f"{folder}/resnet18.pth"})
    embed_shard(embedder, folder / "00000.tar", folder / "results/embeddings/00000.parquet", device="cpu")
    return folder


def test_a_model_of_ones_own_takes_fifteen_lines():
    source = next(block for block in find_blocks("python") if "# my_embedder.py" in block)
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 15


@pytest.mark.parametrize("library", ["pyarrow", "pandas", "polars"])
def test_the_vectors_are_read_as_shown(project, monkeypatch, library):
    monkeypatch.chdir(project)
    names = {}
    exec(next(block for block in find_blocks("python") if f"import {library}" in block), names)
    assert names["vectors"].shape == (3, 512)
    assert names["vectors"].dtype == "float32"


def test_the_nearest_neighbours_are_found_in_sql(project, monkeypatch):
    monkeypatch.chdir(project)
    names = {}
    exec(next(block for block in find_blocks("python") if "import duckdb" in block), names)
    nearest = names["neighbours"].fetchall()
    assert len(nearest) == 3
    assert nearest[0] == ("0001", pytest.approx(1))
