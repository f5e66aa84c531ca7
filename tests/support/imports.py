"""What the files of the package import, read from their source."""

import ast
from collections.abc import Iterator

from support.tools import ROOT

PACKAGE = ROOT / "embedders"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def find_imports(path, at_top_only: bool = False) -> Iterator[tuple[str, int]]:
    """Yield the dotted names that a file imports, those for the type checker included, and the line."""
    tree = ast.parse(path.read_text())
    for parent in ast.walk(tree):
        is_for_types = isinstance(parent, ast.If) and getattr(parent.test, "id", "") == "TYPE_CHECKING"
        if at_top_only and (parent is not tree or is_for_types):
            continue
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
                yield node.module, node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
