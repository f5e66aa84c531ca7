"""What decides the vectors beside the configuration's own text: the embedder's source and its weights.

Imports none of it, so that the Snakefile can ask without loading torch.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedders.errors import EmbedderError
from embedders.locate import EXPECTED, split_class_path


def fingerprint_sources(class_path: str, args: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint what decides the vectors beside the configuration's own text, so that a change reruns shards.

    That is the class's file, the files beside it that it imports (their imports included), and each file that an
    argument names. Small files are hashed; large ones (weights) are told apart by size and time of change, since
    every job of a cluster asks for it anew. Tarquet's own files, beside the class's, and installed packages do not
    count: an upgrade does not rerun terabytes by itself (`snakemake -F` does).
    """
    files = [*find_sources(class_path), *_find_files(args)]
    return {str(path): fingerprint_file(path) for path in dict.fromkeys(files)}


def find_sources(class_path: str) -> list[Path]:
    """Find the file that defines a class and the files beside it that it imports, without importing any."""
    module, name = split_class_path(class_path)
    if not module.endswith(".py"):
        return _find_module_sources(module, name)
    found, todo = [], [Path(module)]
    while todo:
        path = todo.pop()
        if path not in found:
            found.append(path)
            todo += [path.parent / f"{name.replace('.', '/')}.py" for name in _imported_names(path)]
            todo += [path.parent / name.replace(".", "/") / "__init__.py" for name in _imported_names(path)]
            todo = [candidate for candidate in todo if candidate.is_file()]
    return sorted(found)


def _find_module_sources(module: str, name: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise EmbedderError(f"embedder class {module + ':' + name!r}: there is no module {module!r}; {EXPECTED}")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return [origin]
    # A package that re-exports the class: what counts is the file in it that defines the class.
    return [path for path in sorted(origin.parent.glob("*.py")) if f"class {name}(" in path.read_text()] or [origin]


def _imported_names(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []  # the job itself will say so, with the line
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module else [alias.name for alias in node.names]
    return names


def _find_files(value: Any) -> list[Path]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [path for item in value for path in _find_files(item)]
    return [Path(value)] if isinstance(value, str) and len(value) < 4096 and Path(value).is_file() else []


def fingerprint_file(path: str | Path) -> str:
    """Fingerprint a file: by content if it is small, else by size and time of change."""
    path = Path(path)
    stat = path.stat()
    if stat.st_size > 1 << 20:
        return f"{stat.st_size} bytes, changed {int(stat.st_mtime)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
