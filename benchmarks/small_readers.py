"""Compares readers on small images with metadata, where Python and not decoding is the limit: images per second.

    python benchmarks/small_readers.py [RUNS] [SHARDS] [IMAGES_PER_SHARD]

The samples are those of `small_images.py`: a JPEG of 32 x 32 pixels, a .json and a .txt. Each reader has two workers,
decodes the JPEG, does not resize it, and returns batches of 256 images with the text of their .json; Tarquet also
parses it. They run in turn, each in a separate process; the results are medians. See `readers.py` for photographs.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from contestants import CORES, has_failed, run_in_turn, take_median, take_ratio
from readers import make_dali_indexes, measure_reader
from small_images import SIDE, write_shard

BATCH_SIZE = 256


def read_by_tarquet(paths: list[str]) -> Iterator:
    """Read with the default loader of this project."""
    from embedders import ImageEmbedder
    from embedders.reading.pixels import decode_to_tensor

    class SmallEmbedder(ImageEmbedder):
        batch_size = BATCH_SIZE
        num_threads_per_worker = CORES

        def decode(self, encoded):
            return decode_to_tensor(encoded)

        def load_embedding_model(self, device):
            raise NotImplementedError

    embedder = SmallEmbedder()
    for path in paths:
        for batch, _ in embedder.load_dataset_shard(path):
            yield batch


def read_by_clip_retrieval(paths: list[str]) -> Iterable:
    """Read with the reader of `clip-retrieval inference`."""
    from clip_retrieval.clip_inference.reader import WebdatasetReader
    from torchvision.transforms.functional import pil_to_tensor

    reader = WebdatasetReader(
        sampler=lambda urls: urls,
        preprocess=pil_to_tensor,
        tokenizer=None,
        input_dataset=paths,
        batch_size=BATCH_SIZE,
        num_prepro_workers=CORES,
        enable_text=False,
        enable_metadata=True,
    )
    return (batch["image_tensor"] for batch in reader)


def read_by_webdataset(paths: list[str]) -> Iterable:
    """Read as in WebDataset's documentation: decoded and batched in the worker processes of a DataLoader."""
    import webdataset as wds

    images = wds.WebDataset(paths, shardshuffle=False).decode("torchrgb8").to_tuple("jpg", "json")
    loader = wds.WebLoader(images.batched(BATCH_SIZE), batch_size=None, num_workers=CORES)
    return (batch[0] for batch in loader)


def read_by_dali(paths: list[str]) -> Iterable:
    """Read with DALI on the CPU, with an index of each tar made beforehand."""
    from nvidia.dali import fn, pipeline_def

    indexes = make_dali_indexes(paths)

    @pipeline_def(batch_size=BATCH_SIZE, num_threads=CORES, device_id=None)
    def make_pipeline():
        encoded, text = fn.readers.webdataset(paths=paths, index_paths=indexes, ext=["jpg", "json"], name="reader")
        return fn.decoders.image(encoded, device="cpu"), fn.pad(text)

    pipeline = make_pipeline()
    pipeline.build()
    samples = pipeline.epoch_size("reader")
    for first in range(0, samples, BATCH_SIZE):
        images, texts = pipeline.run()
        texts.as_array()
        yield images.as_array()[: samples - first]  # the last batch is filled up


def read_by_spdl(paths: list[str]) -> Iterator:
    """Read with SPDL, as in its examples for tar shards and for batches of images."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def extract(path: str) -> Iterator[tuple[bytes, bytes]]:
        image = b""
        for name, content in spdl.io.iter_tarfile(Path(path).read_bytes()):
            if name.endswith(".jpg"):
                image = bytes(content)
            elif name.endswith(".json"):
                yield image, bytes(content)

    def decode(samples: list[tuple[bytes, bytes]]):
        images = spdl.io.load_image_batch([image for image, _ in samples], width=None, height=None, pix_fmt="rgb24")
        return spdl.io.to_torch(images)

    builder = PipelineBuilder().add_source(paths).pipe(extract).aggregate(BATCH_SIZE)
    pipeline = builder.pipe(decode, concurrency=CORES, output_order="input").add_sink(2).build(num_threads=CORES)
    with pipeline.auto_stop():
        yield from pipeline


OURS = "Tarquet"
# By name: the function that reads, and whether it needs the peers' environment.
READERS = {
    OURS: (read_by_tarquet, False),
    "clip-retrieval": (read_by_clip_retrieval, True),
    "webdataset + DataLoader": (read_by_webdataset, False),
    "DALI on the CPU": (read_by_dali, True),
    "SPDL": (read_by_spdl, True),
}


def main(runs: int = 5, shards: int = 8, images: int = 5000) -> None:
    """Print the table."""
    with TemporaryDirectory() as folder:
        paths = [f"{folder}/{number:05d}.tar" for number in range(shards)]
        for path in paths:
            write_shard(Path(path), images)
        print(
            f"{shards} shards of {images} JPEGs of {SIDE} x {SIDE}; {CORES} workers each; median of {runs}",
            flush=True,
        )
        measured = run_in_turn(__file__, {name: is_peer for name, (_, is_peer) in READERS.items()}, paths, runs)
    print(f"{'':33} images/s  ours is")
    for name, results in measured.items():
        if has_failed(results):
            print(f"{name:33} failed: {results[-1]['failed']}")
            continue
        print(f"{name:33} {take_median(results):8.0f} {take_ratio(measured[OURS], results):7.2f}x")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(measure_reader(READERS[sys.argv[2]][0](sys.argv[3:]))))
    else:
        main(*map(int, sys.argv[1:]))
