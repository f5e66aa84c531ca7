"""What decides the vectors beside the configuration's own text: the source of a class and its weights.

Imports none of it, so that the Snakefile can ask without loading torch.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from embedders.errors import EmbedderError
from embedders.job.locate import EXPECTED, add_working_folder, split_class_path

_FOLDER = "local-dir:"  # as timm names the folder of a model
_PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint_sources(class_path: str, args: Mapping[str, Any], kind: str = "embedder") -> dict[str, str]:
    """Fingerprint what decides the vectors beside the configuration's own text, so that a change reruns shards.

    That is the class's file, the files beside it that it imports (their imports included), and each file that an
    argument names, or that lies in the folder of a model (`local-dir:`). Small files are hashed; large ones (weights)
    are told apart by size and time of change, since every job of a cluster asks for it anew. Tarquet's own files,
    beside the class's, and installed packages do not count: an upgrade does not rerun terabytes by itself
    (`snakemake -F` does).
    """
    files = [*find_sources(class_path, kind), *_find_files(args)]
    return {str(path): fingerprint_file(path) for path in dict.fromkeys(files)}


def find_sources(class_path: str, kind: str = "embedder") -> list[Path]:
    """Find the file that defines a class and the files beside it that it imports, without importing any.

    Raises:
        EmbedderError: There is no such file or module.
    """
    module, name = split_class_path(class_path, kind)
    is_file = module.endswith(".py")
    starts, root = ([Path(module)], Path(module).parent) if is_file else _find_module(module, name, kind)
    found, todo = [], starts
    while todo:
        path = todo.pop()
        if path not in found:
            found.append(path)
            todo += [other for other in _imported_files(path, root) if other.is_file() and _is_local(other)]
    return sorted(found)


def _find_module(module: str, name: str, kind: str) -> tuple[list[Path], Path]:
    """Find the files of a module that define a class, and the folder that the module's name starts from."""
    add_working_folder()
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    for depth in range(1, len(parts)):
        # Part by part: find_spec of the whole name would import the packages above the module.
        folders = spec and spec.submodule_search_locations
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), folders) if folders else None
    if spec is None or not Path(spec.origin or "").is_file():
        raise EmbedderError(f"{kind} class {module + ':' + name!r}: there is no module {module!r}; {EXPECTED}")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return [origin], origin.parents[len(parts) - 1]
    # A package that re-exports the class: what counts is the file in it that defines the class.
    for pattern in ("*.py", "**/*.py"):
        files = [
            path for path in sorted(origin.parent.glob(pattern)) if f"class {name}(".encode() in path.read_bytes()
        ]
        if files:
            return files, origin.parents[len(parts)]
    return [origin], origin.parents[len(parts)]


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    """Name the files that the imports of a file could mean."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the job itself will say so, with the line
    for node in ast.walk(tree):
        folder, names = root, []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = [node.module] if node.module else []
            names = module + [".".join([*module, alias.name]) for alias in node.names]
            folder = path.parents[node.level - 1] if node.level else root
        for name in names:
            yield folder / f"{name.replace('.', '/')}.py"
            yield folder / name.replace(".", "/") / "__init__.py"


def _is_local(path: Path) -> bool:
    is_installed = any(part.endswith("-packages") for part in path.parts)
    return not is_installed and not path.resolve().is_relative_to(_PACKAGE)


def _find_files(value: Any) -> list[Path]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [path for item in value for path in _find_files(item)]
    if not isinstance(value, str) or len(value) >= 4096:
        return []
    if value.startswith(_FOLDER) and Path(value.removeprefix(_FOLDER)).is_dir():
        return sorted(path for path in Path(value.removeprefix(_FOLDER)).iterdir() if path.is_file())
    return [Path(value)] if Path(value).is_file() else []


def fingerprint_file(path: str | Path) -> str:
    """Fingerprint a file: by content if it is small, else by size and time of change."""
    path = Path(path)
    stat = path.stat()
    if stat.st_size > 1 << 20:
        return f"{stat.st_size} bytes, changed {int(stat.st_mtime)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
