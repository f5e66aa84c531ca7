"""Measures what each type of stored vectors costs and keeps: bytes per vector, and neighbours that it still finds.

    python benchmarks/dtypes.py [FOLDER]

Embeds real images (the PNGs of Debian's `tuxpaint-stamps-default`, or the images below FOLDER) with
EfficientNet-Lite0 and its real weights, once per type, and reads the files back. Recall@10 is the share of the ten
nearest neighbours by cosine in float32 that are among the ten nearest in the other type, over all the images. The
bytes are those of the file's columns of vectors and scales.
"""

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedders.job.embed import embed_shard
from embedders.job.locate import build_embedder
from embedders.output.parquet import read_vectors
from embedders.output.vectors import DTYPES

STAMPS = "/usr/share/tuxpaint/stamps"
NEIGHBOURS = 10
SUFFIXES = (".png", ".jpg", ".jpeg")


def write_shard(path: Path, folder: Path) -> int:
    """Write the images below a folder as one shard, and return their number."""
    images = [image for image in sorted(folder.rglob("*")) if image.suffix.lower() in SUFFIXES]
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            content = image.read_bytes()
            member = tarfile.TarInfo(f"{number:06d}{image.suffix.lower()}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return len(images)


def find_neighbours(vectors: np.ndarray) -> np.ndarray:
    """Return the nearest other rows of each row by cosine, of shape (rows, NEIGHBOURS)."""
    unit = vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]


def measure_bytes(path: Path, columns: tuple[str, ...]) -> float:
    """Return the stored bytes per row of these columns."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    stored = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.startswith(columns))
    return stored / metadata.num_rows


def main(folder: str = STAMPS) -> None:
    """Print a row for each type."""
    embedder = build_embedder("examples/lite0.py:Lite0Embedder", {})
    with tempfile.TemporaryDirectory() as place:
        shard = Path(place, "images.tar")
        images = write_shard(shard, Path(folder))
        print(f"{images} images of {folder}\n\n{'type':10}{'bytes/vector':>14}{'recall@10':>11}{'least cosine':>14}")
        reference, nearest = np.empty(0), np.empty(0)
        for dtype in DTYPES:
            path = Path(place, f"{dtype}.parquet")
            options = {"device": "cpu", "embedding_dtype": dtype, "max_failed_fraction": 1.0}
            embed_shard(embedder, shard, path, **options)
            vectors = read_vectors(str(path))[1].astype(np.float32)
            found = find_neighbours(vectors)
            if dtype == "float32":
                reference, nearest = vectors, found
            shared = [len(set(one) & set(other)) for one, other in zip(nearest.tolist(), found.tolist(), strict=True)]
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
            cosine = ((vectors * reference).sum(axis=1) / norms).min()
            size = measure_bytes(path, (embedder.image_embedding_column,))
            print(f"{dtype:10}{size:14,.0f}{np.mean(shared) / NEIGHBOURS:11.4f}{cosine:14.6f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
