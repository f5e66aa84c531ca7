"""`module:Class` or `path/to/file.py:Class` -> the class. Built-in and custom classes are found in the same way.

Owns importing and building an embedder or a classifier, not its contract (`base`, `classifier`).
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from embedders.errors import EmbedderError, describe_error

if TYPE_CHECKING:
    from embedders.base import ImageEmbedder
    from embedders.classifier import ImageClassifier

EXPECTED = 'expected "package.module:Class" or "path/to/file.py:Class"'
# By kind: the module and name of the base class.
BASES = {"embedder": ("embedders.base", "ImageEmbedder"), "classifier": ("embedders.classifier", "ImageClassifier")}


def split_class_path(class_path: str, kind: str = "embedder") -> tuple[str, str]:
    """Split a class path into its module (or file) and its class; `kind`, a key of `BASES`, is for messages.

    Raises:
        EmbedderError: The path does not have two parts, or the file does not exist.
    """
    module, _, name = class_path.rpartition(":")
    if not module or not name.isidentifier():
        raise EmbedderError(f"{kind} class {class_path!r}: {EXPECTED}")
    if module.endswith(".py") and not os.path.isfile(module):
        raise EmbedderError(f"{kind} class {class_path!r}: there is no file {module!r}; {EXPECTED}")
    return module, name


def locate_class(class_path: str, kind: str = "embedder") -> type:
    """Import a class of a kind in `BASES`.

    Raises:
        EmbedderError: The module cannot be imported (with its own error), has no such class, or the class is
            not of this kind.
    """
    base_module, base_name = BASES[kind]
    module_name, name = split_class_path(class_path, kind)
    try:
        add_working_folder()
        is_file = module_name.endswith(".py")
        module = _import_file(module_name) if is_file else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end itself when it is imported
        raise EmbedderError(
            f"{kind} class {class_path!r}: {module_name!r} cannot be imported: {describe_error(error)}; "
            f"{_advise(error, module_name)}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key in dir(module) if inspect.isclass(getattr(module, key, None))]
        near = difflib.get_close_matches(name, classes, 1)
        own = [key for key in classes if getattr(module, key).__module__ == module.__name__]
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, own))}" if own else ""
        raise EmbedderError(f"{kind} class {class_path!r}: {module_name!r} has no class {name!r}{hint}")
    if not (inspect.isclass(found) and issubclass(found, getattr(importlib.import_module(base_module), base_name))):
        raise EmbedderError(
            f"{kind} class {class_path!r} is not an {base_name}; expected `class {name}({base_name})`, "
            f"with `from embedders import {base_name}`"
        )
    return found


def build_embedder(class_path: str, args: Mapping[str, Any]) -> "ImageEmbedder":
    """Locate an embedder class and build it with its arguments.

    Raises:
        EmbedderError: As `locate_class`; or a method of the contract is missing, or the arguments do not fit.
    """
    return _build(class_path, args, "embedder")


def build_classifier(class_path: str, args: Mapping[str, Any]) -> "ImageClassifier":
    """Locate a classifier class and build it with its arguments.

    Raises:
        EmbedderError: As `build_embedder`.
    """
    return _build(class_path, args, "classifier")


@contextmanager
def require_same_folder(name: str) -> Iterator[None]:
    """Check that a class leaves the working folder as it is, because the paths of shards and results start there.

    Args:
        name: What runs in the block, for the message.

    Raises:
        EmbedderError: It changed the working folder, which is set back.
    """
    before = os.getcwd()
    yield
    after = os.getcwd()
    if after != before:
        os.chdir(before)
        raise EmbedderError(
            f"{name} changes the working folder to {after!r}; expected {before!r}, where the paths of shards and "
            "results start; change it back"
        )


def _build(class_path: str, args: Mapping[str, Any], kind: str) -> Any:
    with require_same_folder(f"{kind} class {class_path!r}"):
        return _build_located(class_path, args, kind)


def _build_located(class_path: str, args: Mapping[str, Any], kind: str) -> Any:
    located = locate_class(class_path, kind)
    missing = sorted(getattr(located, "__abstractmethods__", ()))
    if missing:
        raise EmbedderError(f"{kind} class {class_path!r} does not define {', '.join(missing)}; write it")
    signature = inspect.signature(located)
    try:
        signature.bind(**args)
    except TypeError as error:
        raise EmbedderError(
            f"{kind} args {dict(args)!r}: {error}; expected {located.__name__}{_describe(signature)}"
        ) from error
    try:
        built = located(**args)
        built.recipe = {"class": class_path, "args": dict(args)}
        return built
    except EmbedderError:
        raise
    except Exception as error:
        raise EmbedderError(
            f"{located.__name__} cannot be built with {dict(args)!r}: {describe_error(error)}; expected "
            "arguments that its constructor takes"
        ) from error


def _advise(error: BaseException, module_name: str) -> str:
    """Return what to do about a module that cannot be imported."""
    if "relative import" in str(error):
        return "a file is no part of a package: write `import other` for other.py next to it, or name package.module"
    if isinstance(error, ModuleNotFoundError) and error.name and not f"{module_name}.".startswith(f"{error.name}."):
        return f"expected {error.name!r} where jobs run; install it there, or put its file next to this one"
    return EXPECTED


def add_working_folder() -> None:
    """Make modules in the working folder importable; `python -m` does so itself, a console script does not."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _import_file(path: str) -> ModuleType:
    file = Path(path).resolve()
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # so that it can import the files next to it
    # With a prefix, so that a file called timm.py does not replace timm. With the folder, so that two files of one
    # name do not replace each other.
    folder = zlib.crc32(os.fsencode(file.parent))
    spec = importlib.util.spec_from_file_location(f"embedder_file_{file.stem}_{folder:08x}", file)
    if spec is None or spec.loader is None:
        raise EmbedderError(f"{path!r}: cannot be imported; expected a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _describe(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty))
