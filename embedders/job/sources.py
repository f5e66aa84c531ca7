"""The files that an output depends on besides the configuration: the source of a class and its weights.

Imports none of them, so that the Snakefile can use this without loading torch.
"""

import ast
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from embedders.errors import EmbedderError
from embedders.job.locate import EXPECTED, add_working_folder, split_class_path
from embedders.output.hashes import hash_file
from embedders.output.provenance import drop_job_args

_FOLDER = "local-dir:"  # prefix of timm and open_clip for the folder of a model
_MODEL_CONFIGS = ("config.json", "open_clip_config.json")  # of timm and transformers, and of open_clip
_PACKAGE = Path(__file__).resolve().parents[1]


def describe_recipe(
    class_path: str,
    args: Mapping[str, Any],
    kind: str = "embedder",
    hash_file: Callable[[Path], str] = hash_file,
    **options: Any,
) -> dict[str, Any]:
    """Return all that an output depends on besides its shard. An output with a different recipe is made again.

    The recipe has the class, the hashes of its file and of the local files that it imports, directly or
    indirectly, the arguments with the hash of each file that one names or that is in a model's folder, and the
    options. The size of a batch, the number of threads (`JOB_ARGS`) and the location of a file do not count.
    Installed packages and Tarquet's own files, except the file of the class, do not count either: an upgrade must
    not rerun terabytes by itself (`snakemake -F` does).

    Args:
        class_path: The class.
        args: Its arguments.
        kind: `embedder` or `classifier`.
        hash_file: Returns the hash of a file.
        options: Other options that the output depends on; they must fit into JSON.
    """
    module, _, name = class_path.rpartition(":")
    return {
        "class": f"{os.path.basename(module)}:{name}",
        "args": _describe_value(drop_job_args(args), hash_file),
        "source": sorted(hash_file(path) for path in _find_all_sources(class_path, args, kind)),
        **options,
    }


def find_deciding_files(class_path: str, args: Mapping[str, Any], kind: str = "embedder") -> list[Path]:
    """Return the files that an output depends on: those of `find_sources`, and each that an argument names."""
    return list(dict.fromkeys([*_find_all_sources(class_path, args, kind), *_find_files(args)]))


def _find_all_sources(class_path: str, args: Any, kind: str) -> list[Path]:
    """Return the sources of a class, and of the classes that arguments of `SeveralEmbedders` name."""
    found, todo = find_sources(class_path, kind), [args]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.values()
            inner = value.get("class")
            # A user's own class may have an argument of that name for something else, such as a label.
            if isinstance(inner, str) and ":" in inner and value.keys() <= {"class", "args"}:
                found += find_sources(inner, kind)
        elif isinstance(value, list | tuple):
            todo += value
    return list(dict.fromkeys(found))


def find_sources(class_path: str, kind: str = "embedder") -> list[Path]:
    """Return the file that defines a class and the local files that it imports, without importing them.

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
    """Return the files of a module that define a class, and the folder that the module's name is relative to."""
    add_working_folder()
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    for depth in range(1, len(parts)):
        # Part by part: find_spec of the whole name would import the packages above the module.
        folders = spec and spec.submodule_search_locations
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), folders) if folders else None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise EmbedderError(f"{kind} class {module + ':' + name!r}: there is no module {module!r}; {EXPECTED}")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return [origin], origin.parents[len(parts) - 1]
    # A package may re-export the class; the file in it that defines the class counts.
    for pattern in ("*.py", "**/*.py"):
        files = [
            path for path in sorted(origin.parent.glob(pattern)) if f"class {name}(".encode() in path.read_bytes()
        ]
        if files:
            return files, origin.parents[len(parts)]
    return [origin], origin.parents[len(parts)]


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    """Yield the paths that the imports of a file could refer to."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the job will report it, with the line
    for node in ast.walk(tree):
        folder, names = root, []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= len(path.parents):
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
    return [Path(value)] if _is_file(value) else _list_model_folder(value)


def _describe_value(value: Any, hash_file: Callable[[Path], str]) -> Any:
    """Return an argument with each path of a file replaced by the file's name and hash."""
    if isinstance(value, Mapping):
        return {key: _describe_value(item, hash_file) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe_value(item, hash_file) for item in value]
    if files := _list_model_folder(value):
        return {path.name: hash_file(path) for path in files}
    return f"{os.path.basename(value)}, SHA-256 {hash_file(Path(value))}" if _is_file(value) else value


def _list_model_folder(value: Any) -> list[Path]:
    """Return the files of a model's folder, if an argument names one (`local-dir:`, or it has a model's config)."""
    if not isinstance(value, str) or not value:
        return []
    folder = Path(value.removeprefix(_FOLDER))
    # By os.path, because pathlib raises an error for a text that is too long for a name.
    is_models = value.startswith(_FOLDER) or any(map(os.path.isfile, (folder / name for name in _MODEL_CONFIGS)))
    return sorted(filter(Path.is_file, folder.iterdir())) if is_models and os.path.isdir(folder) else []


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and os.path.isfile(value)
