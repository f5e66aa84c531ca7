import os
import sys

import pytest
from support.tools import ROOT

from embedders.errors import EmbedderError
from embedders.job.sources import describe_recipe, find_deciding_files, find_sources


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    files = {
        "mine.py": "import helper\nfrom pkg.sub import layers\nimport numpy\nimport torch.nn\nclass Mine: pass\n",
        "helper.py": "def f():\n    import late\n",
        "late.py": "",
        "unrelated.py": "",
        "pkg/__init__.py": "raise RuntimeError('a package above is imported')\n",
        "pkg/sub/__init__.py": "",
        "pkg/sub/layers.py": "from . import blocks\nfrom ..top import x\n",
        "pkg/sub/blocks.py": "",
        "pkg/sub/model.py": "from pkg.sub import layers\nfrom .blocks import y\nclass Mine: pass\n",
        "pkg/top.py": "import pkg.sub.layers\n",
        "pkg/unrelated.py": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def names(class_path, folder):
    return sorted(os.path.relpath(path, folder) for path in find_sources(class_path))


def test_a_files_imports_are_followed_within_its_folder_and_nothing_is_run(project):
    inner = ["pkg/sub/__init__.py", "pkg/sub/blocks.py", "pkg/sub/layers.py", "pkg/top.py"]
    assert names("mine.py:Mine", project) == ["helper.py", "late.py", "mine.py", *inner]


def test_a_modules_imports_are_followed_within_its_project(project):
    inner = ["pkg/sub/__init__.py", "pkg/sub/blocks.py", "pkg/sub/layers.py"]
    assert names("pkg.sub.model:Mine", project) == [*inner, "pkg/sub/model.py", "pkg/top.py"]
    assert names("mine:Mine", project) == names("mine.py:Mine", project)
    assert "pkg" not in sys.modules


def test_a_class_that_a_package_re_exports_counts_by_the_file_that_defines_it():
    assert names("embedders:TimmImageEmbedder", ROOT) == ["embedders/builtin/timm_embedder.py"]


def test_tarquets_own_files_and_installed_packages_do_not_count(project):
    (project / "mine.py").write_text(
        "from embedders import ImageEmbedder\nimport embedders.reading.images\nimport numpy\n"
    )
    assert names("mine.py:Mine", project) == ["mine.py"]
    (files,) = find_sources("timm.models.resnet:ResNet")
    assert files.name == "resnet.py"


def test_an_import_from_above_the_working_folder_leads_nowhere(project):
    (project / "mine.py").write_text("from ....far import x\nfrom .. import helper\nfrom . import late\n")
    assert names("mine.py:Mine", project) == ["late.py", "mine.py"]


def test_a_file_that_cannot_be_parsed_still_counts(project):
    (project / "mine.py").write_text("class Mine(:\n")
    assert names("mine.py:Mine", project) == ["mine.py"]


@pytest.mark.parametrize("class_path", ["none.py:Mine", "none:Mine", "pkg.none:Mine", "mine.none:Mine", "sys:Mine"])
def test_what_is_not_there_is_named(project, class_path):
    with pytest.raises(EmbedderError, match="there is no"):
        find_sources(class_path)


def test_the_recipe_changes_with_the_file_its_imports_and_its_weights_only(project):
    (project / "w.pt").write_bytes(b"weights")
    args = {"checkpoint": "w.pt", "nested": {"also": ["helper.py"]}, "words": "not a file", "n": 5}
    found = [describe_recipe("mine.py:Mine", args)]
    assert (found[0]["class"], found[0]["args"]["words"], found[0]["args"]["n"]) == ("mine.py:Mine", "not a file", 5)
    for name in ("mine.py", "late.py", "pkg/top.py", "w.pt"):
        (project / name).write_bytes((project / name).read_bytes() + b"\n")
        found.append(describe_recipe("mine.py:Mine", args))
    assert len({str(recipe) for recipe in found}) == 5
    for name in ("unrelated.py", "pkg/unrelated.py", "README.md"):
        (project / name).write_text("# a comment")
    (project / "mine.py").touch()
    assert describe_recipe("mine.py:Mine", args) == found[-1]
    assert describe_recipe("mine.py:Mine", args, id_col="id") == found[-1] | {"id_col": "id"}


def test_where_a_file_lies_does_not_count_but_its_name_and_content_do(project):
    (project / "w.pt").write_bytes(b"weights")
    first = describe_recipe("mine.py:Mine", {"checkpoint": "w.pt"})
    assert describe_recipe(f"{project}/mine.py:Mine", {"checkpoint": f"{project}/w.pt"}) == first
    (project / "w.pt").rename(project / "v.pt")
    assert describe_recipe("mine.py:Mine", {"checkpoint": "v.pt"}) != first


def test_the_size_of_a_batch_and_the_number_of_threads_do_not_count(project):
    recipe = describe_recipe("mine.py:Mine", {"n": 1, "batch_size": 2, "num_threads_per_worker": 8})
    assert recipe == describe_recipe("mine.py:Mine", {"n": 1, "batch_size": 64})
    assert recipe["args"] == {"n": 1}


def test_the_files_that_decide_are_found(project):
    (project / "w.pt").write_bytes(b"weights")
    found = {str(path) for path in find_deciding_files("mine.py:Mine", {"nested": ["w.pt", 1]})}
    assert found >= {"mine.py", "helper.py", "late.py", "w.pt"}


@pytest.mark.parametrize(
    "args",
    [
        *({"prompt": "a photo of " * length} for length in (30, 500)),
        *({"prompt": text} for text in ("", "a\0b", "local-dir:" + "x" * 300)),
        {"head": {"class": "linear"}},
        {"labels": {"class": "a: the first", "other": "b"}},
    ],
)
def test_an_argument_that_is_a_text_names_no_file_and_no_class(project, args):
    assert describe_recipe("mine.py:Mine", args)["args"] == args
    assert find_deciding_files("mine.py:Mine", args) == find_deciding_files("mine.py:Mine", {})


def test_the_sources_of_classes_in_arguments_count(project):
    args = {"embedders": [{"class": "late.py:A", "args": {"size": 1}}, {"class": "pkg.unrelated:B"}]}
    found = {os.path.relpath(path, project) for path in find_deciding_files("unrelated.py:Several", args)}
    assert found == {"unrelated.py", "late.py", "pkg/unrelated.py"}
    with pytest.raises(EmbedderError, match=r"there is no file 'none\.py'"):
        find_deciding_files("mine.py:Mine", {"embedders": [{"class": "none.py:A"}]})


@pytest.mark.parametrize("config", ["config.json", "open_clip_config.json"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_models_folder_counts_by_the_files_in_it(project, config, prefix):
    folder = project / "models/vit"
    (folder / "more").mkdir(parents=True)
    args = {"model_name": f"{prefix}models/vit"}
    assert describe_recipe("mine:Mine", args)["args"] == args  # any folder, as one for a cache, is no model's
    for name in (config, "model.safetensors"):
        (folder / name).write_text("first")
    first = describe_recipe("mine:Mine", args)
    assert {path.name for path in find_deciding_files("mine:Mine", args)} >= {config, "model.safetensors"}
    folder.rename(project / "moved")
    moved = {"model_name": f"{prefix}moved"}
    assert describe_recipe("mine:Mine", moved) == first
    (project / "moved/model.safetensors").write_text("other weights")
    assert describe_recipe("mine:Mine", moved) != first
