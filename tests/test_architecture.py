"""The walls of the design: which room imports from which. A breach is named with its file and its line."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest
from support.imports import MODULES, PACKAGE, find_imports
from support.tools import ROOT, start_python

# Each room, and the rooms that it imports from. `contract` is base.py and classifier.py at the top.
ROOMS = {
    "errors": set(),
    "gpu": {"errors"},
    "output": {"errors"},
    "reading": {"errors", "output"},
    "contract": {"errors", "output", "reading"},
    "builtin": {"errors", "reading", "contract", "job"},
    "job": {"errors", "gpu", "output", "reading", "contract"},
    "planning": {"errors", "gpu", "output", "reading", "job"},
    "checks": {"errors", "gpu", "output", "reading", "contract", "job"},
    "report": {"errors", "output", "reading"},
    "copies": {"errors", "gpu", "output"},
    "export": {"errors", "output"},
    "cli": {
        "errors",
        "gpu",
        "output",
        "reading",
        "contract",
        "job",
        "planning",
        "checks",
        "report",
        "copies",
        "export",
    },
}
# Files at the top of the package: each is a room, or part of one.
TOP = {
    "errors": "errors",
    "base": "contract",
    "classifier": "contract",
    "testing": "checks",
    "cli": "cli",
    "cli_copies": "cli",
    "cli_results": "cli",
    "terminal": "cli",
    "__main__": "cli",
}
ONLY_IMPORTER = {
    "pyarrow.parquet": {
        "output.footers",
        "output.near_copies",
        "output.parquet",
        "output.tables",
        "output.writer",
    },
    "duckdb": {"output.repeated_ids"},
    "timm": {"builtin.timm_embedder", "builtin.timm_pixels", "builtin.timm_source", "builtin.timm_weights"},
    "open_clip": {"builtin.open_clip_source"},
    "transformers": {"builtin.hugging_face_embedder"},
    "huggingface_hub": {"builtin.hub"},
    "pynvml": {"gpu.nvml"},
    "click": {"cli", "cli_copies", "cli_results", "export.command", "terminal", "job.progress"},
    "faiss": {"cli_copies", "copies.search"},
    "lancedb": {"export.lance"},
    "obstore": {"reading.credentials", "reading.stores"},
    "boto3": {"reading.credentials"},
    "tarfile": {"reading.headers"},
    "bokeh": {"report.charts"},
    "sklearn": {"report.neighbours"},
}
# The Snakefile imports these, and `--help` and a bad option must answer at once: no torch at the top of the file.
LIGHT = {
    "__main__",
    "checks.outputs",
    "cli",
    "cli_copies",
    "cli_results",
    "copies.settings",
    "terminal",
    "errors",
    "export.command",
    "gpu.device",
    "gpu.lease",
    "gpu.lock_folder",
    "gpu.terms",
    "gpu.watch",
    "job.failures",
    "job.garbage",
    "job.locate",
    "job.meter",
    "job.run",
    "job.shard_job",
    "job.sources",
    "job.time_limit",
    "output.failed",
    "output.files",
    "output.hashes",
    "output.provenance",
    "output.record",
    "output.strays",
    "output.timings",
    "output.usage",
    "planning.adoption",
    "planning.config",
    "planning.container",
    "planning.file_times",
    "planning.folder",
    "planning.job_python",
    "planning.jobs",
    "planning.parts",
    "planning.progress",
    "planning.recipes",
    "planning.running",
    "planning.shard_names",
    "planning.shards",
    "reading.copies",
    "reading.credentials",
    "reading.end",
    "reading.fetch",
    "reading.headers",
    "reading.magic",
    "reading.metadata",
    "reading.remote",
    "reading.samples",
    "reading.scratch",
    "reading.stores",
    "reading.tar",
    "report.settings",
}
HEAVY = {"torch", "torchvision", "timm", "pyarrow", "numpy", "PIL", "webdataset", "boto3", "obstore"}


def find_room(module: str) -> str:
    parts = module.split(".")
    return TOP[parts[1]] if len(parts) == 2 else parts[1]


def find_own_imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield the modules of this package that one imports, and the line."""
    yield from ((name, line) for name, line in find_imports(MODULES[module]) if name in MODULES)


def test_the_rooms_are_the_folders():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders | set(TOP.values()) == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(TOP) | {"__init__"}
    list(TopologicalSorter(ROOMS).static_order())  # raises CycleError where two rooms need each other


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - {PACKAGE}))
def test_a_room_is_entered_through_its_files(folder):
    assert not (folder / "__init__.py").read_text(), "what stands there is imported for every neighbour"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_the_rooms_below_only(room):
    breaches = [
        f"{MODULES[module].relative_to(ROOT)}, line {line}: {name}"
        for module in MODULES
        if find_room(module) == room
        for name, line in find_own_imports(module)
        if find_room(name) not in ROOMS[room] | {room}
    ]
    assert not breaches, f"{room} imports from {ROOMS[room] or 'nothing'} only"


def test_no_files_import_each_other_in_a_circle():
    list(
        TopologicalSorter(
            {module: {name for name, _ in find_own_imports(module)} for module in MODULES}
        ).static_order()
    )


@pytest.mark.parametrize("library", ONLY_IMPORTER)
def test_a_library_behind_a_wall_is_imported_there_only(library):
    importers = {f"embedders.{module}" for module in ONLY_IMPORTER[library]}
    breaches = [
        f"{module}, line {line}"
        for module, path in MODULES.items()
        for name, line in find_imports(path)
        if (name == library or name.startswith(f"{library}.")) and module not in importers
    ]
    assert not breaches, f"{library} belongs to {importers} alone: {breaches}"
    for module in importers:
        assert any(name.startswith(library) for name, _ in find_imports(MODULES[module]))


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_must_be_light_imports_nothing_heavy_at_the_top(module):
    imports = find_imports(MODULES[f"embedders.{module}"], at_top_only=True)
    assert not {(name, line) for name, line in imports if name.split(".")[0] in HEAVY}


def test_what_the_snakefile_imports_stays_light():
    code = "import sys; from embedders.planning import config; from embedders.job import sources; print(*sys.modules)"
    loaded, errors = start_python(code).communicate(timeout=30)
    assert "embedders.job.sources" in loaded.split(), errors
    assert not HEAVY & set(loaded.split())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_opens_with_what_it_owns(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_no_module_takes_the_place_of_a_library():
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert not names & (set(sys.stdlib_module_names) | {"timm", "torch", "webdataset"})
    assert not {"utils", "helpers", "common", "misc"} & {module.rpartition(".")[2] for module in MODULES}


def test_what_only_looks_at_results_and_shards_loads_no_torch():
    code = (
        "import sys; from embedders.report import page; from embedders.output import summary; "
        "from embedders.checks import shard_statistics; print('torch' in sys.modules)"
    )
    assert start_python(code).communicate(timeout=120)[0].strip() == "False"
