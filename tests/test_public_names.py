"""What `from embedders import ...` offers: to a program, to an editor and to a type checker."""

import ast
import importlib
import tomllib

import pytest
from support.tools import ROOT

import embedders


@pytest.mark.parametrize("name", embedders.__all__)
def test_a_public_name_is_there_and_listed(name):
    assert getattr(embedders, name).__name__ == name
    assert name in dir(embedders)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'TimmEmbedder'"):
        embedders.TimmEmbedder  # noqa: B018


def test_a_type_checker_sees_the_names_where_a_program_finds_them():
    body = ast.parse((ROOT / "embedders/__init__.py").read_text()).body
    (for_types,) = [node for node in body if isinstance(node, ast.If)]
    seen = {alias.name: line.module for line in for_types.body for alias in line.names}
    assert seen == embedders._MODULES
    assert sorted(seen) == embedders.__all__


def test_the_package_says_that_it_has_types():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["embedders"] == ["py.typed"]
    assert (ROOT / "embedders/py.typed").exists()


def test_every_name_of_testing_is_there():
    testing = importlib.import_module("embedders.testing")
    assert all(hasattr(testing, name) for name in testing.__all__)
