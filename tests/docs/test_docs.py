"""What README.md and docs/ say is so: the table is the schema's, commands and keys exist, links lead somewhere.

The Python of README.md and contract.md is run here; that of read-vectors.md and migrate.md, in tests of their own.
"""

import io
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib

import click
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from support.config_table import PAGE, ROOT, SCHEMA_PATH, insert_table
from support.tools import clean_environment, make_image, make_tar
from support.workflow import list_snakemake_options
from torchvision.models import resnet18

from embedders import _MODULES, embed_shard
from embedders.cli import main
from embedders.errors import ConfigError
from embedders.job.locate import build_embedder
from embedders.output.failed import FailureKind
from embedders.output.parquet import read_vectors
from embedders.planning.config import check_config

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
MAX_README_LINES = 200


def find_blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


def find_commands(page, start):
    """The commands of a page that begin with these words: lines of its blocks of shell, and inline code."""
    lines = [line.split(" #")[0].strip() for block in find_blocks(page, "sh") for line in join_lines(block)]
    prose = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [command for command in [*lines, *spans] if re.match(rf"(\w+=\S+ )*{start}( |$)", command)]


def join_lines(block):
    return block.replace("\\\n", " ").splitlines()


def strip_start(command, start):
    return shlex.split(command[command.index(start) + len(start) :])


# config.yaml


def test_the_table_of_keys_is_the_schema():
    page = PAGE.read_text()
    assert "| `shards` |" in page
    assert page == insert_table(page), (
        "docs/configuration.md is not as the schema: python tests/support/config_table.py writes it"
    )


def test_the_shipped_configurations_keep_to_the_schema():
    for path in (ROOT / "config.yaml", ROOT / "examples/demo/config.yaml", *ROOT.glob("examples/*.yaml")):
        check_config(yaml.safe_load(path.read_text()), SCHEMA_PATH)


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_of_yaml_is_a_part_of_config_yaml_or_of_a_profile(page):
    for block in find_blocks(page, "yaml"):
        part = yaml.safe_load(block)
        if all(f"--{key}" in list_snakemake_options() for key in part):
            continue
        try:
            check_config({"shards": "data/*.tar", "embedder": {"class": "a:B"}} | part, SCHEMA_PATH)
        except ConfigError as error:
            pytest.fail(f"{page}: {error} in\n{block}")


def test_the_kinds_of_failure_and_their_fixes_are_those_of_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| .+ \| (.+) \|$", TEXTS["docs/output.md"].partition("The kinds:")[2], re.MULTILINE
    )
    assert dict(rows) == {str(kind): kind.fix for kind in FailureKind}
    assert [kind for kind, _ in rows] == [str(kind) for kind in FailureKind]


def test_the_readme_lists_the_classes_that_are_built_in():
    part = TEXTS["README.md"].partition("## What is built in")[2].partition("\n## ")[0]
    listed = re.findall(r"`embedders:(\w+)`", part)
    assert sorted(listed) == sorted(name for name, module in _MODULES.items() if ".builtin." in module)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"pip install 'tarquet\[([\w-]+)\]'", "".join(TEXTS.values()))) <= set(extras)


# Commands


@pytest.mark.parametrize("page", TEXTS)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in find_commands(page, "make"):
        named = [word for word in strip_start(command, "make") if "=" not in word]
        assert set(named) <= targets, f"{page}: {command}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_snakemake_option_exists(page):
    for command in find_commands(page, "snakemake"):
        options = {word.partition("=")[0] for word in strip_start(command, "snakemake") if word.startswith("-")}
        assert options <= list_snakemake_options() | {"--"}, f"{page}: {command}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_of_the_package_takes_these_arguments(page):
    for start in ("python -m embedders", "tarquet"):
        for command in find_commands(page, start):
            name, *arguments = strip_start(command, start) or ["--help"]
            if name.startswith("-"):
                assert CliRunner().invoke(main, [name]).exit_code == 0, f"{page}: {command}"
            elif arguments:
                try:
                    main.commands[name].make_context(name, arguments)
                except (click.UsageError, KeyError) as error:
                    pytest.fail(f"{page}: {command}: {error}")
            else:
                assert name in main.commands, f"{page}: {command}"


def test_the_commands_are_found():
    assert {"make run", "make test", "make setup"} <= set(find_commands("README.md", "make"))
    assert len(find_commands("README.md", "snakemake")) >= 2
    assert "tarquet check" in find_commands("README.md", "tarquet")
    assert any("--shard" in command for command in find_commands("docs/contract.md", "tarquet"))
    assert any("verify" in command for command in find_commands("docs/output.md", "tarquet"))


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page}: {link}"


def test_every_page_is_in_the_readme():
    missing = [page for page in TEXTS if page.startswith("docs/") and f"({page})" not in TEXTS["README.md"]]
    assert not missing


def test_the_readme_is_a_page_or_two():
    assert len(TEXTS["README.md"].splitlines()) <= MAX_README_LINES


# Python


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_of_python_is_python(page):
    for block in find_blocks(page, "python"):
        if not block.startswith("# Snakefile"):  # test_module.py runs the like of it
            compile(block, page, "exec")


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
    source = next(block for block in find_blocks("README.md", "python") if "# my_embedder.py" in block)
    (folder / "my_embedder.py").write_text(source)
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    make_shard(folder / "00000.tar")
    embedder = build_embedder(f"{folder}/my_embedder.py:MyEmbedder", {"weights_path": f"{folder}/resnet18.pth"})
    embed_shard(embedder, folder / "00000.tar", folder / "results/embeddings/00000.parquet", device="cpu")
    return folder


@pytest.fixture
def in_project(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)


def test_a_model_of_ones_own_takes_fifteen_lines():
    source = next(block for block in find_blocks("README.md", "python") if "# my_embedder.py" in block)
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 15


def test_the_vectors_are_read_as_shown(in_project):
    names = {}
    exec(next(block for block in find_blocks("README.md", "python") if "import pandas" in block), names)
    assert names["vectors"].shape == (3, 512)
    assert names["vectors"].dtype == "float32"


def test_a_shard_is_embedded_from_python_as_shown(in_project, capsys):
    exec(next(block for block in find_blocks("docs/contract.md", "python") if "embed_shard(" in block), {})
    assert capsys.readouterr().out == "3 {}\n"


def test_a_pipeline_of_webdatasets_stages_gives_the_vectors_of_the_default_loader(in_project, tmp_path):
    names = {}
    exec(next(block for block in find_blocks("docs/contract.md", "python") if "TarSamples(" in block), names)
    ledger = embed_shard(names["MyPipeline"]("resnet18.pth"), "00000.tar", tmp_path / "o.parquet", device="cpu")
    assert (ledger.seen, ledger.embedded) == (3, 3)
    vectors, expected = (
        read_vectors(str(path))[1] for path in (tmp_path / "o.parquet", "results/embeddings/00000.parquet")
    )
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_a_decode_that_asks_for_metadata_gets_it(in_project, tmp_path):
    names = {}
    exec(next(block for block in find_blocks("docs/contract.md", "python") if "metadata_fields" in block), names)
    members = {}
    for number in range(3):
        members |= {f"{number}.jpg": make_image(number), f"{number}.json": {"label": number}}
    make_tar(tmp_path / "s.tar", members)
    embed_shard(names["MyLabels"]("resnet18.pth"), tmp_path / "s.tar", tmp_path / "o.parquet", device="cpu")
    table, _, described = read_vectors(str(tmp_path / "o.parquet"))
    assert described.shapes == {"image": (512,), "label": (1,)}
    assert table["label"].to_pylist() == [[0.0], [1.0], [2.0]]
    make_tar(tmp_path / "empty.tar", {})
    embed_shard(names["MyLabels"]("resnet18.pth"), tmp_path / "empty.tar", tmp_path / "e.parquet", device="cpu")
    assert read_vectors(str(tmp_path / "e.parquet"))[0].schema.equals(table.schema)


@pytest.mark.slow
def test_a_test_suite_of_ones_own_finds_a_contract_that_is_kept_and_one_that_is_not(project):
    block = next(block for block in find_blocks("docs/contract.md", "python") if "check_embedder" in block)
    (project / "test_my_embedder.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_embedder.py"]
    options = {"cwd": project, "env": clean_environment(), "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, **options)
    assert "1 passed" in done.stdout, done.stdout
    (project / "test_my_embedder.py").write_text(block.replace('"resnet18.pth"', '"nowhere.pth"'))
    done = subprocess.run(command, **options)
    assert "FileNotFoundError" in done.stdout and "1 failed" in done.stdout
