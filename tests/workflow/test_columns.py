"""Several columns of vectors and int8 in real Snakemake runs: which are searched, shown, and made again."""

import json
import re

import pyarrow.parquet as pq
import pytest
import yaml
from support.tools import make_shard
from support.workflow import find_planned, run_snakemake, run_well

from embedders.output.near_copies import read_counts

EMBEDDER = """
from embedders import ImageEmbedder

class Stripes(ImageEmbedder):
    def load_embedding_model(self, device):
        def embed(batch):
            stripes = batch.unflatten(2, (4, -1)).mean(dim=(3, 4)).transpose(1, 2) - 0.5
            return {"stripes": stripes, "whole": stripes.mean(dim=1), "first": stripes[:, 0]}
        return embed
"""
CONFIG = {
    "shards": "data/*.tar",
    "embedder": {"class": "stripes.py:Stripes"},
    "embedding_dtype": "int8",
    "near_copies": {"cosine": 0.98, "column": "first"},
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture
def project(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "stripes.py").write_text(EMBEDDER)
    for seed, name in enumerate("ab"):
        make_shard(tmp_path / f"data/{name}.tar", 5 + seed)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def configure(project, **keys):
    (project / "config.yaml").write_text(yaml.safe_dump(CONFIG | keys))


def test_a_run_of_several_columns_in_int8(project):
    run_well(project, "--cores", "2")
    names = pq.read_schema(project / "results/embeddings/a.parquet").names
    assert names == ["shard", "key", "stripes", "stripes_scale", "whole", "whole_scale", "first", "first_scale"]
    assert json.loads((project / "results/summary.json").read_text())["embedded"] == 11
    assert read_counts(project / "results/near_copies.parquet").column == "first"
    assert "this page shows &#39;whole&#39;" in (project / "results/report.html").read_text()
    assert find_planned(project) == set()
    configure(project, near_copies={"cosine": 0.98})
    planned = run_well(project, "-n")
    assert "rule plan_near_copies:" in planned
    assert "rule embed" not in planned
    configure(project, near_copies={"cosine": 0.98, "column": "stripes"})
    done = run_snakemake(project, "--cores", "2")
    assert done.returncode
    log = (project / "results/logs/near_copies/plan.log").read_text()
    assert "'stripes' has several vectors per image, 4 x 3 (stripes), 3 (whole), 3 (first); expected one" in log
    configure(project, embedding_dtype="float16", near_copies={})
    assert find_planned(project) == {"a", "b"}


def test_another_column_of_the_report_makes_the_report_again_and_nothing_else(project):
    page = project / "results/report.html"
    first, other = CONFIG | {"near_copies": {}}, {"near_copies": {}, "report": {"column": "first"}}
    (project / "config.yaml").write_text(yaml.safe_dump(first))
    run_well(project, "--cores", "2")
    assert "this page shows &#39;whole&#39;" in page.read_text()
    configure(project, **other)
    said = run_well(project, "--cores", "2")
    assert list_rules(said) == ["write_report", "all"]
    assert "this page shows &#39;first&#39;" in page.read_text()
    assert "Nothing to be done" in run_well(project, "--cores", "2")

    # Back to the first one, by another name for it, and then without the name.
    assert list_rules(run_well(project, "--cores", "2", "--config", "report={column: whole}")) == [
        "write_report",
        "all",
    ]
    assert "this page shows &#39;whole&#39;" in page.read_text()
    configure(project, near_copies={}, report=False)
    assert "Nothing to be done" in run_well(project, "--cores", "2")

    # A column that the model does not give.
    configure(project, near_copies={}, report={"column": "hole"})
    done = run_snakemake(project, "--cores", "2")
    assert done.returncode
    expected = "there is no column of vectors 'hole'; expected one of: 4 x 3 (stripes), 3 (whole), 3 (first)"
    assert expected in done.stdout
    assert list_rules(done.stdout) == ["write_report"]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"colum": "first"}, "unknown key 'report.colum'; did you mean 'column'?"),
        ({"column": 1}, "report.column is 1; expected: The column of vectors to show"),
        ("first", "report is 'first'; expected: Whether to write `report.html`"),
    ],
)
def test_a_wrong_report_is_one_line_before_anything_runs(report, message, project):
    configure(project, report=report)
    done = run_snakemake(project, "-n")
    assert done.returncode
    assert message in done.stdout


def list_rules(said):
    return re.findall(r"^(?:local)?rule (\w+):", said, re.MULTILINE)
