"""`module:Class` or `path/to/file.py:Class` -> the class. Built-in and user classes take this one road.

Owns importing and building an embedder; not what it must do (`base`).
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from embedders.errors import EmbedderError, describe_error

if TYPE_CHECKING:
    from embedders.base import ImageEmbedder

EXPECTED = 'expected "package.module:Class" or "path/to/file.py:Class"'


def split_class_path(class_path: str) -> tuple[str, str]:
    """Split a class path into its module (or file) and its class.

    Raises:
        EmbedderError: There are not two parts, or the file does not exist.
    """
    module, _, name = class_path.rpartition(":")
    if not module or not name.isidentifier():
        raise EmbedderError(f"embedder class {class_path!r}: {EXPECTED}")
    if module.endswith(".py") and not Path(module).is_file():
        raise EmbedderError(f"embedder class {class_path!r}: there is no file {module!r}; {EXPECTED}")
    return module, name


def locate_class(class_path: str) -> type["ImageEmbedder"]:
    """Import an embedder class.

    Raises:
        EmbedderError: The module cannot be imported (with its own error), has no such class, or the class is
            not an `ImageEmbedder`.
    """
    from embedders.base import ImageEmbedder

    module_name, name = split_class_path(class_path)
    try:
        add_working_folder()
        is_file = module_name.endswith(".py")
        module = _import_file(module_name) if is_file else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end itself when it is imported
        raise EmbedderError(
            f"embedder class {class_path!r}: {module_name!r} cannot be imported: {describe_error(error)}; {EXPECTED}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        near = difflib.get_close_matches(name, classes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EmbedderError(f"embedder class {class_path!r}: {module_name!r} has no class {name!r}{hint}")
    if not (inspect.isclass(found) and issubclass(found, ImageEmbedder)):
        raise EmbedderError(
            f"embedder class {class_path!r} is not an ImageEmbedder; expected `class {name}(ImageEmbedder)`, "
            "with `from embedders import ImageEmbedder`"
        )
    return found


def build_embedder(class_path: str, args: Mapping[str, Any]) -> "ImageEmbedder":
    """Locate a class and build it with its arguments.

    Raises:
        EmbedderError: As `locate_class`; or a method of the contract is missing, or the arguments do not fit.
    """
    embedder_class = locate_class(class_path)
    missing = sorted(embedder_class.__abstractmethods__)
    if missing:
        raise EmbedderError(f"embedder class {class_path!r} does not define {', '.join(missing)}; write it")
    signature = inspect.signature(embedder_class)
    try:
        signature.bind(**args)
    except TypeError as error:
        raise EmbedderError(
            f"embedder args {dict(args)!r}: {error}; expected {embedder_class.__name__}{_describe(signature)}"
        ) from error
    try:
        embedder = embedder_class(**args)
        embedder.recipe = {"class": class_path, "args": dict(args)}
        return embedder
    except EmbedderError:
        raise
    except Exception as error:
        raise EmbedderError(
            f"{embedder_class.__name__} cannot be built with {dict(args)!r}: {describe_error(error)}; expected "
            "arguments that its constructor takes"
        ) from error


def add_working_folder() -> None:
    """Let modules of the working folder be found: `python -m` sees to it, a console script does not."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _import_file(path: str) -> ModuleType:
    file = Path(path).resolve()
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # so that it can import the files beside it
    # A name of its own: a file called timm.py must not take the place of timm.
    spec = importlib.util.spec_from_file_location(f"embedder_file_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _describe(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty))
