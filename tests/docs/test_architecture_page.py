"""docs/architecture.md names the folders and files that are there, all of them, and no others."""

import re

from support.tools import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_tree_is_what_lies_in_the_package():
    tree = PAGE.partition("```text\n")[2].partition("```")[0]
    named = set(re.findall(r"(?m)^  (\S+)", tree))
    there = {f"{path.name}/" for path in (ROOT / "embedders").iterdir() if (path / "__init__.py").exists()}
    assert named == there | {path.name for path in (ROOT / "embedders").glob("*.py")}
    top = [name.strip(",") for line in re.findall(r"(?m)^(\S.*?)  ", tree) for name in line.split()]
    assert len(top) > 5 and all((ROOT / name).exists() for name in top)


def test_every_file_and_room_of_the_text_is_there():
    text = PAGE.rpartition("```")[2]
    paths = re.findall(r"`((?:\w+/)+\w+\.\w+)`", text)
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / "embedders" / path).exists() and not (ROOT / path).exists()]


def test_it_is_a_page_or_two():
    assert len(PAGE.splitlines()) < 100
