"""The walls of the design: who may import whom. A breach is named with its file and its line."""

import ast
import sys
from collections.abc import Iterator

import pytest
from tools import ROOT, start_python

PACKAGE = ROOT / "embedders"
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}

# From the bottom to the top: a module imports from the layers below its own only.
LAYERS = [
    {"errors", "timings", "light_torch"},
    {"failures", "columns", "ledger", "outputs", "prefetch", "tar", "images", "nvml", "lease_folder", "remote"},
    {"neighbours", "charts"},
    {"shards", "parquet", "visibility", "pixels"},
    {"loader", "config", "container", "summary", "leases", "progress", "run_progress"},
    {"sampling", "thumbnails", "findings"},
    {"base", "classifier", "gpus", "survey"},
    {"locate", "provenance", "timm_embedder", "laion", "gpu_table"},
    {"sources", "model"},
    {"reader", "finished", "device", "head"},
    {"job"},
    {"verify", "scores", "report"},
    {"check_loader"},
    {"contract"},
    {"check"},
    {"cli"},
    {"__main__"},
]
ONLY_IMPORTER = {
    "pyarrow.parquet": {"parquet"},
    "timm": {"timm_embedder"},
    "pynvml": {"nvml"},
    "click": {"cli", "progress"},
    "tarfile": {"tar"},
    "bokeh": {"charts"},
    "sklearn": {"neighbours"},
}
# The Snakefile imports these, and `--help` and a bad option must answer at once: no torch at the top of the file.
LIGHT = {
    "__init__",
    "__main__",
    "errors",
    "outputs",
    "run_progress",
    "tar",
    "shards",
    "config",
    "container",
    "lease_folder",
    "remote",
    "locate",
    "sources",
    "failures",
    "finished",
    "device",
    "cli",
    "gpus",
}
HEAVY = {"torch", "torchvision", "timm", "pyarrow", "numpy", "PIL", "webdataset"}


def find_imports(path, at_top_only: bool = False) -> Iterator[tuple[str, int]]:
    """Yield the dotted names that a file imports, and the line; not those for the type checker alone."""
    tree = ast.parse(path.read_text())
    for parent in ast.walk(tree):
        is_for_types = isinstance(parent, ast.If) and getattr(parent.test, "id", "") == "TYPE_CHECKING"
        for node in ast.iter_child_nodes(parent) if not is_for_types else ():
            if at_top_only and parent is not tree:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
                yield node.module, node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def find_neighbours(path) -> set[str]:
    names = {name.split(".")[1] for name, _ in find_imports(path) if name.startswith("embedders.")}
    return names & set(MODULES)


def test_every_module_has_its_layer():
    assert set(MODULES) - {"__init__"} == set().union(*LAYERS), "a new module goes into LAYERS, above all it imports"
    assert len(set().union(*LAYERS)) == sum(map(len, LAYERS))


@pytest.mark.parametrize("height", range(len(LAYERS)))
def test_a_layer_imports_from_the_layers_below_only(height):
    below = set().union(*LAYERS[:height])
    for module in LAYERS[height]:
        upward = find_neighbours(MODULES[module]) - below
        assert not upward, f"{module}.py imports {upward}, of its own layer or above"


@pytest.mark.parametrize("library", ONLY_IMPORTER)
def test_a_library_behind_a_wall_is_imported_there_only(library):
    breaches = [
        f"{module}.py, line {line}"
        for module, path in MODULES.items()
        for name, line in find_imports(path)
        if (name == library or name.startswith(f"{library}.")) and module not in ONLY_IMPORTER[library]
    ]
    assert not breaches, f"{library} belongs to {ONLY_IMPORTER[library]} alone: {breaches}"
    for module in ONLY_IMPORTER[library]:
        assert any(name.startswith(library) for name, _ in find_imports(MODULES[module]))


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_must_be_light_imports_nothing_heavy_at_the_top(module):
    heavy = {
        (name, line) for name, line in find_imports(MODULES[module], at_top_only=True) if name.split(".")[0] in HEAVY
    }
    assert not heavy


def test_what_the_snakefile_imports_stays_light():
    code = "import sys, embedders.config, embedders.errors, embedders.outputs, embedders.sources; print(*sys.modules)"
    loaded, errors = start_python(code).communicate(timeout=30)
    assert "embedders.sources" in loaded.split(), errors
    assert not HEAVY & set(loaded.split())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_opens_with_what_it_owns(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_no_module_takes_the_place_of_a_library():
    assert not set(MODULES) & (set(sys.stdlib_module_names) | {"timm", "torch", "webdataset"}) - {
        "__init__",
        "__main__",
    }
    assert not {"utils", "helpers", "common", "misc"} & set(MODULES)


def test_what_only_looks_at_results_and_shards_loads_no_torch():
    code = "import sys, embedders.report, embedders.summary, embedders.survey; print('torch' in sys.modules)"
    assert start_python(code).communicate(timeout=120)[0].strip() == "False"
