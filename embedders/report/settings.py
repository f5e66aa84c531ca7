"""The setting `report` of config.yaml, and whether an existing page was made with it. The Snakefile imports it."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def find_column(config: Mapping[str, Any]) -> str:
    """Return the column of vectors to show; empty for the first one with one vector per image."""
    report = config["report"]
    return report["column"] if isinstance(report, Mapping) else ""


def shows_other_column(path: str, column: str) -> bool:
    """Return whether an existing page was asked to show another column."""
    if not Path(path).is_file():
        return False  # Snakemake makes what is missing
    with Path(path).open(errors="replace") as file:
        head = file.read(4096)
    asked = re.search(r'<meta name="tarquet-column" content="(.*?)">', head, re.DOTALL)
    # A page from before this setting shows the first column, unless someone asked for another on the command line.
    return column != (html.unescape(asked[1]) if asked else "")
