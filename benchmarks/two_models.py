"""Compares one run of two models by `SeveralEmbedders` with a run of each: the time, and the reader's part of it.

    python benchmarks/two_models.py [RUNS] [IMAGES] [DEVICE]

The models are CLIP ViT-B/32 by open_clip and DINOv2-small by transformers, with random weights, which cost the same
time as real ones. The images are JPEGs cut from photographs (`photographs.py`). The three jobs take turns; the
results are medians: seconds of the whole job, its CPU time, and the CPU time of its reader alone, without a model.
CPU time depends less on what else the machine does. A job with a GPU waits for its reader if that is slower than the
model.
"""

import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import torch
import transformers
from photographs import describe_shards, write_shards

from embedders.base import ImageEmbedder
from embedders.gpu.device import keep_freed_memory
from embedders.job.embed import embed_shard
from embedders.job.locate import build_embedder

CLIP, DINO = "CLIP ViT-B/32", "DINOv2-small"
READS = 5  # of the reader alone, which is quick
BOTH, TWO = "both in one run", "one run after the other"


def make_models(folder: Path) -> dict[str, dict]:
    """Save the models with random weights; return class and arguments of an embedder for each."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32")
    clip, dino = folder / "clip", folder / "dinov2"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(open_clip.CLIP(**config).state_dict(), clip / "open_clip_pytorch_model.bin")
    size = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
    transformers.Dinov2Model(size).save_pretrained(dino)
    transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(dino)
    alone = {
        CLIP: {
            "class": "embedders:OpenClipImageEmbedder",
            "args": {"model_name": f"local-dir:{clip}", "image_embedding_column": "clip"},
        },
        DINO: {
            "class": "embedders:HuggingFaceImageEmbedder",
            "args": {"model_name": str(dino), "image_embedding_column": "dinov2"},
        },
    }
    both = {"class": "embedders:SeveralEmbedders", "args": {"embedders": list(alone.values())}}
    return alone | {BOTH: both}


def measure_job(embedder: ImageEmbedder, shard: str, output: Path, device: str) -> tuple[float, float, float]:
    """Return the seconds of a job, its CPU time, and that of its reader alone."""
    start, cpu_start = time.perf_counter(), time.process_time()
    embed_shard(embedder, shard, output, device=device)
    total, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    cpu_start = time.process_time()
    for _ in range(READS):
        for _ in embedder.load_dataset_shard(shard):
            pass
    return total, cpu, (time.process_time() - cpu_start) / READS


def main(runs: int = 3, images: int = 256, device: str = "cpu") -> None:
    """Print the medians of each job, of both single jobs together, and the ratio."""
    keep_freed_memory()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (shard,) = shards = write_shards(folder / "shards", 1, images)
        print(describe_shards(shards))
        embedders = {job: build_embedder(each["class"], each["args"]) for job, each in make_models(folder).items()}
        warm_up = write_shards(folder / "warm", 1, 8)[0]
        for embedder in embedders.values():
            embed_shard(embedder, warm_up, folder / "w.parquet", device=device)
        times: dict[str, list[tuple[float, ...]]] = {job: [] for job in embedders}
        for _ in range(runs):
            for job, embedder in embedders.items():
                times[job].append(measure_job(embedder, shard, folder / "o.parquet", device))
    medians = {job: [statistics.median(part) for part in zip(*each, strict=True)] for job, each in times.items()}
    medians[TWO] = [sum(both) for both in zip(medians[CLIP], medians[DINO], strict=True)]
    print(f"\n{'':26}{'seconds':>9}{'CPU':>9}{'reader':>9}")
    for job, (total, cpu, reader) in medians.items():
        print(f"{job:26}{total:9.1f}{cpu:9.1f}{reader:9.2f}")
    ratios = [one / two for one, two in zip(medians[BOTH], medians[TWO], strict=True)]
    print(f"{'one run / two runs':26}" + "".join(f"{ratio:9.2f}" for ratio in ratios))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
