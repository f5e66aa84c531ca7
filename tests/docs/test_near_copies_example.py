"""examples/near_copies: the commands of its page, in a folder of their own, and what comes out."""

import re
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
from support.tools import ROOT
from support.workflow import snakemake_command, snakemake_environment

from embedders.output.near_copies import read_near_copies


def test_each_photograph_is_seen_once_and_at_its_largest(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    block = re.search(r"```sh\n(.*?)```", (ROOT / "examples/near_copies/README.md").read_text(), re.DOTALL)[1]
    for command in block.splitlines():
        program, *arguments = shlex.split(command)
        shards = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("data/near_copies/*.tar"))
        arguments = [path for word in arguments for path in (shards if "*" in word else [word])]
        start = [sys.executable] if program == "python" else [*snakemake_command(), "--cores", "2"]
        options = {"cwd": tmp_path, "env": snakemake_environment(), "capture_output": True, "text": True}
        done = subprocess.run([*start, *arguments], **options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("9 images, 15 near copies left out\n")
    assert done.stdout.count(": 1\n") == 9

    table, counts = read_near_copies(tmp_path / "results/near_copies/near_copies.parquet")
    assert (counts.groups, counts.images) == (5, 20)
    rows = [
        row for path in tmp_path.glob("results/near_copies/embeddings/*") for row in pq.read_table(path).to_pylist()
    ]
    captions = {row["key"]: row["caption"] for row in rows}
    widths = {row["key"]: row["width"] for row in rows}
    for pair in table.to_pylist():  # no pair of two photographs
        assert captions[pair["key"]] == captions[pair["other_key"]]
        if pair["keep"] or pair["other_keep"]:
            kept, other = ("key", "other_key") if pair["keep"] else ("other_key", "key")
            assert widths[pair[kept]] >= widths[pair[other]]
