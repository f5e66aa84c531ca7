"""Columns of vectors: their types in a file, and how arrays become such columns and are read back from them.

A column holds one vector per image, `fixed_size_list<T>[dimension]`, or several, the parts of an image,
`fixed_size_list<fixed_size_list<T>[dimension]>[parts]`; neither is ever null. The columns of vectors come last in a
file. With int8, the column after one of vectors holds their scales: a vector is its integers times its scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa

from embedders.errors import ConfigError
from embedders.output.arrays import wrap_array

DTYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
# The largest number that each type holds. The largest float32 itself, rounded to int8, might read back as infinity.
LIMITS = {"float32": np.finfo("f4").max, "float16": np.finfo("f2").max, "int8": np.finfo("f4").max / 2}
_TINY = np.finfo("f4").tiny  # below, a float32 has fewer digits, and the error would be larger than half a scale

Shape = tuple[int, ...]


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors.

    Attributes:
        name: Its name.
        shape: `(dimension,)`, or `(parts, dimension)` if each image has several vectors.
        dtype: The stored type, a key of `DTYPES`.
    """

    name: str
    shape: Shape
    dtype: str

    @property
    def parts(self) -> int | None:
        """Number of vectors of an image; `None` if each image has one vector."""
        return self.shape[0] if len(self.shape) > 1 else None

    @property
    def read_dtype(self) -> str:
        """The type that readers return: float32 for int8, otherwise the stored one."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the vectors of an image, as they are read."""
        return prod(self.shape) * np.dtype(self.read_dtype).itemsize

    @property
    def scale(self) -> str | None:
        """Name of the column of scales, which only int8 needs."""
        return f"{self.name}_scale" if self.dtype == "int8" else None

    @property
    def fields(self) -> list[pa.Field]:
        """The Arrow fields that store it: the vectors and, with int8, their scales."""
        fields = [pa.field(self.name, nest(DTYPES[self.dtype], self.shape), nullable=False)]
        if self.scale:
            fields.append(pa.field(self.scale, nest(pa.float32(), self.shape[:-1]), nullable=False))
        return fields

    def as_read(self) -> "VectorColumn":
        """Return the column that readers make of it."""
        return VectorColumn(self.name, self.shape, self.read_dtype)

    def store(self, vectors: np.ndarray) -> list[pa.Array]:
        """Return vectors, of shape (rows, ...), as the arrays of `fields`; all numbers are finite."""
        vectors = vectors.reshape(-1, *self.shape)
        if self.scale:
            numbers, scales = quantize(vectors)
            return [_to_arrow(numbers, self.shape), _to_arrow(scales, self.shape[:-1])]
        return [_to_arrow(vectors.astype(self.dtype, copy=False), self.shape)]

    def load(self, table: pa.Table) -> np.ndarray:
        """Return the vectors of a table that has `fields`, as `read_dtype` and of shape (rows, *shape)."""
        numbers = _to_numpy(table[self.name], self.shape)
        return numbers * self.load_scales(table)[..., None] if self.scale else numbers

    def load_scales(self, table: pa.Table) -> np.ndarray:
        """Return the scale of each vector, of shape (rows, *shape[:-1]); zeros unless the type is int8."""
        if self.scale:
            return _to_numpy(table[self.scale], self.shape[:-1])
        return np.zeros((len(table), *self.shape[:-1]), np.float32)


def nest(element: pa.DataType, shape: Shape) -> pa.DataType:
    """Return the type of arrays of this shape as nested fixed-size lists, none of which is null."""
    for size in reversed(shape):
        element = pa.list_(pa.field("element", element, nullable=False), size)
    return element


def list_leaves(fields: list[pa.Field]) -> list[str]:
    """Return the paths by which Parquet names the numbers in columns of fixed-size lists."""
    paths = []
    for field in fields:
        path, kind = field.name, field.type
        while pa.types.is_fixed_size_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        paths.append(path)
    return paths


def quantize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round vectors to int8.

    Args:
        vectors: Of shape (..., dimension), all finite.

    Returns:
        Integers from -127 to 127, of the same shape, and the scale of each vector, float32 of shape (...): the
        largest absolute number divided by 127; 0 for a vector of zeros. An integer times the scale differs from the
        number by at most half of the scale, apart from the rounding of float32.
    """
    vectors = vectors.astype(np.float32, copy=False)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    scales = np.where(largest > 0, np.maximum(largest / np.float32(127), _TINY), np.float32(0))
    ratios = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
    return np.rint(ratios).astype(np.int8), scales[..., 0]


def round_vectors(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Return vectors, of shape (rows, dimension), as they are read after they were stored as this type."""
    if dtype != "int8":
        return vectors.astype(dtype, copy=False)
    numbers, scales = quantize(vectors)
    return numbers * scales[..., None]


def find_columns(schema: pa.Schema) -> dict[str, VectorColumn]:
    """Find the columns of vectors, which come last, and are never null as metadata may be."""
    found: dict[str, VectorColumn] = {}
    fields = list(schema)
    while fields:
        field = fields.pop()
        if fields and field.name == f"{fields[-1].name}_scale" and _get_element(fields[-1].type) == pa.int8():
            field = fields.pop()
        if not pa.types.is_fixed_size_list(field.type) or field.nullable:
            break
        shape, kind = [], field.type
        while pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
            kind = kind.value_type
        names = [name for name, element in DTYPES.items() if element == kind]
        if not names:
            break
        found[field.name] = VectorColumn(field.name, tuple(shape), names[0])
    return dict(reversed(found.items()))


def choose_column(columns: Mapping[str, VectorColumn], name: str, where: str) -> VectorColumn:
    """Return the column of this name; for an empty name, the first one with one vector per image.

    Args:
        columns: The columns by their names.
        name: The name.
        where: Where the columns are, for messages.

    Raises:
        ConfigError: There is no such column, or it has several vectors per image.
    """
    single = [column for column in columns.values() if column.parts is None]
    shapes = describe_shapes({column.name: column.shape for column in columns.values()}, with_names=True)
    if name and name not in columns:
        raise ConfigError(f"{where}: there is no column of vectors {name!r}; expected one of: {shapes}")
    if (name and columns[name] not in single) or not single:
        what = f"column {name!r} has" if name else "every column has"
        others = f"expected one vector per image: {', '.join(column.name for column in single) or 'none has'}"
        raise ConfigError(f"{where}: {what} several vectors per image, {shapes}; {others}")
    return columns[name] if name else single[0]


def split_columns(vectors: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Split rows of numbers into columns of these shapes; each becomes an array of shape (rows, *shape)."""
    ends = np.cumsum([prod(shape) for shape in shapes.values()])
    parts = np.split(vectors, ends[:-1], axis=1)
    return {name: part.reshape(len(part), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def describe_shapes(shapes: Mapping[str, Shape], with_names: bool = False) -> str:
    """Return shapes as text, such as `512` or `257 x 1024`; of several columns with the name of each."""
    texts = {name: " x ".join(map(str, shape)) for name, shape in shapes.items()}
    if len(texts) == 1 and not with_names:
        return next(iter(texts.values()))
    return ", ".join(f"{text} ({name})" for name, text in texts.items())


def _get_element(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _to_arrow(numbers: np.ndarray, shape: Shape) -> pa.Array:
    array = wrap_array(numbers.reshape(-1))
    for level in range(len(shape), 0, -1):
        array = pa.FixedSizeListArray.from_arrays(array, type=nest(array.type, shape[level - 1 : level]))
    return array


def _to_numpy(column: pa.ChunkedArray, shape: Shape) -> np.ndarray:
    array = column.combine_chunks()
    for _ in shape:
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
