"""Compares readers, from tar shards to batches for a model: images per second with two workers each.

    python benchmarks/readers.py [RUNS] [SHARDS] [IMAGES_PER_SHARD]

All preprocess for `tf_efficientnet_lite0`: short side to 256 (bicubic), centre of 224 x 224, batches of 64. The
readers run in turn, each in a separate process, and are timed from the first batches to the last; the results are
medians. Tarquet, SPDL and DALI return uint8, which a device normalizes faster than a core; clip-retrieval and
DataLoader run timm's transform, which normalizes. The upper limit is two processes that only decode JPEGs exactly,
and resize them as Tarquet does, from memory.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from contestants import CORES, has_failed, run_in_turn, take_median, take_ratio
from photographs import describe_shards, read_pictures, write_shards

MODEL = "tf_efficientnet_lite0"
BATCH_SIZE = 64
RESIZED, CROPPED = 256, 224


def make_transform():
    """Return timm's own transform of the model."""
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.get_pretrained_cfg(MODEL).to_dict()
    return create_transform(**resolve_data_config(pretrained_cfg=config, use_test_size=True), is_training=False)


def read_by_tarquet(paths: list[str]) -> Iterator:
    """Read with the default loader of this project."""
    from embedders import TimmImageEmbedder

    embedder = TimmImageEmbedder(MODEL, batch_size=BATCH_SIZE, num_threads_per_worker=CORES)
    for path in paths:
        for batch, _ in embedder.load_dataset_shard(path):
            yield batch


def read_by_clip_retrieval(paths: list[str]) -> Iterable:
    """Read with the reader of `clip-retrieval inference`, with timm's transform in place of CLIP's."""
    from clip_retrieval.clip_inference.reader import WebdatasetReader

    reader = WebdatasetReader(
        sampler=lambda urls: urls,
        preprocess=make_transform(),
        tokenizer=None,
        input_dataset=paths,
        batch_size=BATCH_SIZE,
        num_prepro_workers=CORES,
        enable_text=False,
    )
    return (batch["image_tensor"] for batch in reader)


def read_by_webdataset(paths: list[str]) -> Iterable:
    """Read as in WebDataset's documentation: decoded and batched in the worker processes of a DataLoader."""
    import webdataset as wds

    images = wds.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("jpg").map_tuple(make_transform())
    loader = wds.WebLoader(images.batched(BATCH_SIZE), batch_size=None, num_workers=CORES)
    return (batch[0] for batch in loader)


def make_dali_indexes(paths: list[str]) -> list[str]:
    """Write the index of each tar that DALI's documentation advises, and return their paths."""
    from wds2idx import IndexCreator

    indexes = [f"{path}.idx" for path in paths]
    for path, index in zip(paths, indexes, strict=True):
        with IndexCreator(path, index, verbose=False) as creator:
            creator.create_index()
    return indexes


def read_by_dali(paths: list[str]) -> Iterable:
    """Read with DALI on the CPU, with an index of each tar made beforehand, as its documentation advises."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    indexes = make_dali_indexes(paths)

    @pipeline_def(batch_size=BATCH_SIZE, num_threads=CORES, device_id=None)
    def make_pipeline():
        encoded = fn.readers.webdataset(paths=paths, index_paths=indexes, ext=["jpg"], name="reader")
        images = fn.decoders.image(encoded, device="cpu")
        images = fn.resize(images, resize_shorter=RESIZED, interp_type=types.INTERP_CUBIC)
        return fn.crop_mirror_normalize(images, crop=(CROPPED, CROPPED), dtype=types.UINT8, output_layout="CHW")

    batches = DALIGenericIterator(
        [make_pipeline()], ["images"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL
    )
    return (batch[0]["images"] for batch in batches)


def read_by_spdl(paths: list[str]) -> Iterator:
    """Read with SPDL, as in its examples for tar shards and for batches of images."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    sides = {"scale_width": RESIZED, "scale_height": RESIZED, "crop_width": CROPPED, "crop_height": CROPPED}
    resize = spdl.io.get_video_filter_desc(**sides, scale_mode="crop", pix_fmt="rgb24")

    def extract(path: str) -> Iterator[bytes]:
        for _, content in spdl.io.iter_tarfile(Path(path).read_bytes()):
            yield bytes(content)

    def decode(encoded: list[bytes]):
        return spdl.io.to_torch(spdl.io.load_image_batch(encoded, width=None, height=None, filter_desc=resize))

    builder = PipelineBuilder().add_source(paths).pipe(extract).aggregate(BATCH_SIZE)
    pipeline = builder.pipe(decode, concurrency=CORES, output_order="input").add_sink(2).build(num_threads=CORES)
    with pipeline.auto_stop():
        yield from pipeline


def decode_pictures(encoded: list[bytes]) -> float:
    """Decode and resize pictures as the reader does, but without reading their headers first; return the seconds."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)
    start_s = time.perf_counter()
    for content in encoded:
        image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
        image = functional.resize(image, [RESIZED], interpolation=InterpolationMode.BICUBIC, antialias=True)
        functional.center_crop(image, [CROPPED, CROPPED])
    return time.perf_counter() - start_s


def measure_limit(paths: list[str]) -> dict:
    """Measure decoding and resizing of pictures in memory on all cores."""
    encoded = list(read_pictures(paths))
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(decode_pictures, [encoded[:4]] * CORES))  # import and warm up
        parts = [encoded[core::CORES] for core in range(CORES)]
        seconds = pool.map(decode_pictures, parts)
        return {"images_per_s": sum(len(part) / took_s for part, took_s in zip(parts, seconds, strict=True))}


def measure_reader(batches: Iterable) -> dict:
    """Measure a reader from the first batches to the last."""
    iterator = iter(batches)
    # As many as there are workers, because DataLoader's workers have their first batches ready at the same time.
    first = [next(iterator) for _ in range(CORES)]
    images, start_s = 0, time.perf_counter()
    for batch in iterator:
        images += len(batch)
    took_s = time.perf_counter() - start_s
    return {"images_per_s": images / took_s, "images": images + sum(map(len, first)), "shape": list(first[0].shape)}


OURS, LIMIT = "Tarquet", "the limit: decode + resize alone"
# By name: the function that reads, and whether it needs the peers' environment.
READERS = {
    OURS: (read_by_tarquet, False),
    "clip-retrieval": (read_by_clip_retrieval, True),
    "webdataset + DataLoader": (read_by_webdataset, False),
    "DALI on the CPU": (read_by_dali, True),
    "SPDL": (read_by_spdl, True),
}


def main(runs: int = 5, shards: int = 16, images: int = 192) -> None:
    """Print the table."""
    contestants = {LIMIT: False} | {name: is_peer for name, (_, is_peer) in READERS.items()}
    with TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), shards, images)
        print(f"{describe_shards(paths)}; {CORES} workers each; median of {runs}", flush=True)
        measured = run_in_turn(__file__, contestants, paths, runs)
    print(f"{'':33} images/s  ours is  of the limit")
    for name, results in measured.items():
        if has_failed(results):
            print(f"{name:33} failed: {results[-1]['failed']}")
            continue
        ratio, of_limit = take_ratio(measured[OURS], results), take_ratio(results, measured[LIMIT])
        print(f"{name:33} {take_median(results):8.0f} {ratio:7.2f}x {of_limit:13.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        contestant, paths = sys.argv[2], sys.argv[3:]
        is_limit = contestant == LIMIT
        print(json.dumps(measure_limit(paths) if is_limit else measure_reader(READERS[contestant][0](paths))))
    else:
        main(*map(int, sys.argv[1:]))
