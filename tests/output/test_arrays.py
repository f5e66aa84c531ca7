import math
import random

import numpy as np
import pyarrow as pa
import pytest
from support.tools import start_python

from embedders.output import arrays
from embedders.output.arrays import build_array, wrap_array

VALUES = {
    "string": ["", "a", "é", "日本語", "🙂", "a\0b", "x" * 3000],
    "int64": [0, -1, 2**63 - 1, -(2**63), 7],
    "double": [0.0, -0.0, 1.5, math.inf, -math.inf, 1e-310],
    "bool": [True, False],
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("share_of_nulls", [0, 0.3, 1])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 64, 1000])
def test_it_is_what_pyarrow_builds(name, share_of_nulls, length):
    chance = random.Random(length)
    values = [None if chance.random() < share_of_nulls else chance.choice(VALUES[name]) for _ in range(length)]
    kind = {"double": pa.float64(), "bool": pa.bool_()}.get(name) or getattr(pa, name)()
    built = build_array(values, kind)
    built.validate(full=True)
    assert built.equals(pa.array(values, kind)) and built.null_count == values.count(None)
    assert built.slice(length // 3).to_pylist() == values[length // 3 :]


def test_nan_is_a_number():
    assert math.isnan(build_array([math.nan], pa.float64())[0].as_py())


@pytest.mark.parametrize(("values", "kind"), [([2**63], pa.int64()), ([-(2**63) - 1, None], pa.int64())])
def test_an_integer_of_more_than_64_bits_is_refused(values, kind):
    with pytest.raises(OverflowError):
        build_array(values, kind)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UnicodeEncodeError):
        build_array(["a", "\ud800"], pa.string())


def test_texts_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(arrays, "_MAX_TEXT_BYTES", 9)
    assert build_array(["a" * 9], pa.string())[0].as_py() == "a" * 9
    with pytest.raises(OverflowError, match="10 bytes of text in one batch"):
        build_array(["a" * 9, "b"], pa.string())


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("step", [1, 2])
def test_numpy_arrays_are_wrapped(kind, step):
    values = np.arange(10, dtype=kind)[::step]
    wrapped = wrap_array(values)
    wrapped.validate(full=True)
    assert wrapped.equals(pa.array(values))


def test_the_memory_of_a_wrapped_array_stays():
    assert wrap_array(np.full(100_000, 7.0)).to_numpy().sum() == 700_000


def test_neither_asks_for_pandas():
    code = """
import sys
import numpy as np, pyarrow as pa
from embedders.output.arrays import build_array, wrap_array
build_array(["a", None], pa.string()), build_array([1, None], pa.int64()), wrap_array(np.zeros(3))
print("pandas" in sys.modules)
pa.array([1])
print("pandas" in sys.modules)
"""
    assert start_python(code).communicate(timeout=60)[0].split() == ["False", "True"], (
        "if pyarrow no longer imports pandas, use its own function again"
    )
