"""Arrow arrays from lists and from numpy arrays, without `pyarrow.array`.

`pyarrow.array` imports pandas where it is installed, to ask whether its argument is a pandas object. A job has none,
and the import takes a tenth of the CPU time of its start.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_NUMPY_TYPES = {pa.int64(): np.int64, pa.float64(): np.float64, pa.bool_(): np.bool_}
_MAX_TEXT_BYTES = 2**31 - 1


def build_array(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    """Build an array from values of one Python type; `None` becomes null.

    Args:
        values: `str`, `int`, `float` or `bool`, as `type` needs.
        type: `string`, `int64`, `float64` or `bool`.

    Raises:
        OverflowError: An integer has more than 64 bits, or the texts together more than 2 GB.
        UnicodeEncodeError: A text has half a surrogate pair.
    """
    is_valid = np.array([value is not None for value in values], np.bool_)
    validity = None if is_valid.all() else _pack(is_valid)
    if pa.types.is_string(type):
        buffers = _encode(values)
    else:
        numbers: np.ndarray = np.array([0 if value is None else value for value in values], _NUMPY_TYPES[type])
        buffers = [_pack(numbers) if pa.types.is_boolean(type) else pa.py_buffer(numbers)]
    return pa.Array.from_buffers(type, len(values), [validity, *buffers])


def wrap_array(values: np.ndarray) -> pa.Array:
    """Return numbers of shape (n,) as an array without nulls, which shares their memory if they are contiguous."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _pack(bits: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(bits, bitorder="little"))


def _encode(texts: Sequence[str | None]) -> list[pa.Buffer]:
    encoded = [text.encode() if text else b"" for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if ends[-1] > _MAX_TEXT_BYTES:
        raise OverflowError(f"{ends[-1]} bytes of text in one batch; expected at most {_MAX_TEXT_BYTES}")
    return [pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
