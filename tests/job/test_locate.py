import sys

import pytest
from support.tools import MEAN_COLOR

from embedders import TimmImageEmbedder
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder, locate_class, split_class_path
from embedders.job.provenance import hash_source
from embedders.output.hashes import hash_file

EMBEDDER = """
from embedders import ImageEmbedder

class Mine(ImageEmbedder):
    def __init__(self, size, colour="red"):
        super().__init__()
        self.size = size
        if size < 0:
            raise ValueError("a negative size")

    def load_embedding_model(self, device):
        return None

class Half(ImageEmbedder):
    pass

class Other:
    pass

number = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with an embedder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "mine.py").write_text(EMBEDDER)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message_of(class_path, args=None):
    with pytest.raises(EmbedderError) as caught:
        build_embedder(class_path, args or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_in_and_user_classes_take_the_same_road(folder):
    assert locate_class("embedders:TimmImageEmbedder") is TimmImageEmbedder
    assert locate_class("mine:Mine").__name__ == "Mine"
    assert locate_class("mine.py:Mine").__name__ == "Mine"
    assert locate_class(f"{folder}/mine.py:Mine").__name__ == "Mine"
    assert build_embedder(MEAN_COLOR, {}).model_name == "MeanColor"


def test_a_module_in_a_package_of_the_working_folder_is_found_without_help_from_the_path(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    (folder / "pkg").mkdir()
    (folder / "pkg" / "deep.py").write_text(EMBEDDER)
    assert locate_class("pkg.deep:Mine").__name__ == "Mine"


def test_a_file_can_import_the_files_beside_it_and_takes_no_other_modules_place(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "timm.py").write_text("from helper import Base\nclass Mine(Base):\n    pass\n")
    (folder / "sub" / "helper.py").write_text(EMBEDDER.replace("Mine", "Base"))
    assert build_embedder("sub/timm.py:Mine", {"size": 1}).size == 1
    assert "sub" not in sys.modules["timm"].__file__


def test_files_of_one_name_in_two_folders_are_two_modules(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(f"{EMBEDDER}\n# {name}\n")
    found = {name: locate_class(f"{name}/model.py:Mine") for name in ("a", "b")}
    for name, located in found.items():
        assert hash_source(located) == hash_file(folder / name / "model.py")


def test_the_arguments_reach_the_constructor_and_are_kept_as_a_recipe(folder):
    embedder = build_embedder("mine.py:Mine", {"size": 3, "colour": "blue"})
    assert embedder.size == 3
    assert embedder.recipe == {"class": "mine.py:Mine", "args": {"size": 3, "colour": "blue"}}


@pytest.mark.parametrize("class_path", ["", "Mine", "mine:", ":Mine", "mine:Mine()", "mine.py"])
def test_what_is_no_class_path_says_what_one_looks_like(class_path):
    assert 'expected "package.module:Class" or "path/to/file.py:Class"' in message_of(class_path)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(EmbedderError, match=r"there is no file 'none\.py'"):
        split_class_path("none.py:Mine")


def test_a_module_that_is_not_there_is_named(folder):
    message = message_of("no_such_module:Mine")
    assert "'no_such_module' cannot be imported: ModuleNotFoundError: No module named 'no_such_module'" in message


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("\nimport not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all' (bad.py, line 2)"),
        ("x = 1\nclass Mine(:\n", "SyntaxError: invalid syntax (bad.py, line 2)"),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError: division by zero (bad.py, line 2)"),
        ("import sys\nsys.exit('usage')\n", "SystemExit: usage (bad.py, line 2)"),
        ("raise KeyError\n", "KeyError: without a message (bad.py, line 1)"),
    ],
)
def test_an_import_that_fails_shows_the_real_cause_and_line(folder, source, cause):
    (folder / "bad.py").write_text(source)
    for class_path in ("bad.py:Mine", "bad:Mine"):
        assert cause in message_of(class_path)


def test_a_class_that_is_not_there_has_its_near_name_suggested(folder):
    assert message_of("mine.py:Mime").endswith("has no class 'Mime'; did you mean 'Mine'?")
    assert message_of("mine.py:Zzz").endswith("has no class 'Zzz'; it has 'Half', 'Mine', 'Other'")


def test_what_is_no_image_embedder_is_refused(folder):
    for name in ("Other", "number"):
        assert "is not an ImageEmbedder; expected `class " in message_of(f"mine.py:{name}")


def test_a_method_that_is_missing_is_named(folder):
    assert "does not define load_embedding_model" in message_of("mine.py:Half")


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "missing a required argument: 'size'"),
        (
            {"size": 1, "color": "red"},
            "unexpected keyword argument 'color'; expected Mine(size, colour='red')",
        ),
        ({"size": -1}, "ValueError: a negative size (mine.py, line 9)"),
        ({"size": "x"}, "TypeError: '<' not supported between instances of 'str' and 'int' (mine.py, line 8)"),
    ],
)
def test_wrong_arguments_are_told_with_the_right_ones(folder, args, reason):
    assert reason in message_of("mine.py:Mine", args)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("from .other import THING", "write `import other` for other.py next to it, or name package.module"),
        (
            "import no_such_package.part",
            "expected 'no_such_package' where jobs run; install it there, or put its file",
        ),
        ("import json.no_such_part", "expected 'json.no_such_part' where jobs run"),
    ],
)
def test_what_a_file_cannot_import_is_told_with_what_to_do(folder, line, advice):
    (folder / "imports.py").write_text(line)
    assert advice in message_of("imports.py:Mine")
