"""What a job imports at its start, and what it does not."""

import gc
import weakref

import pytest
from support.tools import MEAN_COLOR, make_image, make_tar, start_python

from embedders.job.garbage import keep_imports


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()
    gc.enable()


class Cycle:
    def __init__(self):
        self.itself = self


def test_garbage_is_searched_for_again_after_the_imports():
    with keep_imports():
        assert not gc.isenabled()
        imported = weakref.ref(Cycle())
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    later = weakref.ref(Cycle())
    gc.collect()
    assert imported() is not None and later() is None, "what the block made is left out, and the rest is not"


def test_a_failed_import_and_a_search_that_was_off_change_nothing():
    with pytest.raises(ImportError), keep_imports():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with keep_imports():
        pass
    assert not gc.isenabled()


@pytest.mark.slow
def test_a_job_loads_no_pandas(tmp_path):
    members = {
        "0.jpg": make_image(),
        "0.json": {"id": "a", "width": 3, "ok": True, "share": None},
        "1.jpg": b"broken",
    }
    make_tar(tmp_path / "s.tar", members | {"1.json": {"id": "b"}, "2.jpg": make_image(2), "2.json": {"id": [1]}})
    columns = '{"width": "int64", "ok": "bool", "share": "float64"}'
    options = ["--ledger", "ledger/s.parquet", "--record", "record", "--id-col", "id", "--metadata-columns", columns]
    command = ["embed", str(tmp_path / "s.tar"), "embeddings/s.parquet", "--embedder", MEAN_COLOR, *options]
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.argv = ["tarquet", *{command!r}, "--device", "cpu", "--max-failed-fraction", "1"]
from embedders.cli import main
try:
    main()
finally:
    print([name for name in ("pandas", "torchvision", "timm", "webdataset") if name in sys.modules])
"""
    job = start_python(code)
    printed, log = job.communicate(timeout=120)
    assert (job.returncode, printed) == (0, "[]\n"), log
    assert "3 samples, 2 embedded, 1 failed" in log
