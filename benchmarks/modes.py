"""Measures the faster modes of a model: images per second, and how much the vectors change.

    python benchmarks/modes.py [RUNS]

Uses EfficientNet-Lite0 with its real weights, on crops of photographs that are decoded beforehand; on all cores of
the CPU, and on the GPU if there is one. The reference is timm's own model in float32 on the CPU. The modes are
measured in turn; the results are medians. A model is compiled before the measurement, and the time for that is
printed.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from end_to_end import load_timm_model
from photographs import CROPS, read_pictures, write_shards
from readers import BATCH_SIZE

from embedders.gpu.device import keep_freed_memory
from embedders.job.locate import build_embedder

IMAGES = 4 * BATCH_SIZE
MODES = {
    "float32, the default of a CPU": {"autocast": False},
    "float32, compile": {"autocast": False, "compile": True},
    "bfloat16, the default of a GPU": {"autocast": "bfloat16"},
    "bfloat16, compile": {"autocast": "bfloat16", "compile": True},
}


def decode_all(embedder) -> torch.Tensor:
    """Return the images, decoded as in a job."""
    with tempfile.TemporaryDirectory() as folder:
        encoded = read_pictures(write_shards(Path(folder), 1, min(IMAGES, CROPS)))
        return torch.stack([embedder.decode(image) for image in encoded])


def embed_all(model, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Embed all images in batches, and return the vectors, on the CPU, and the seconds."""
    start = time.perf_counter()
    vectors = torch.cat([model(batch) for batch in images.split(BATCH_SIZE)]).cpu()
    return vectors, time.perf_counter() - start


def embed_by_timm(images: torch.Tensor, config: dict) -> torch.Tensor:
    """Embed all images with timm alone."""
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    model = load_timm_model()
    with torch.inference_mode():
        vectors = torch.cat([model((batch / 255 - mean) / std) for batch in images.split(BATCH_SIZE)])
    return torch.nn.functional.normalize(vectors)


def main(runs: int = 5) -> None:
    """Print a table for each device."""
    keep_freed_memory()
    embedder = build_embedder("examples/lite0.py:Lite0Embedder", {})
    images = decode_all(embedder)
    reference = embed_by_timm(images, embedder.describe_preprocessing())
    print(f"{len(images)} images in batches of {BATCH_SIZE}; median of {runs}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        models, seconds, vectors = {}, {mode: [] for mode in MODES}, {}
        for mode, options in MODES.items():
            models[mode] = build_embedder("examples/lite0.py:Lite0Embedder", options).load_embedding_model(device)
            start = time.perf_counter()
            vectors[mode], _ = embed_all(models[mode], images)
            print(f"  {device}, {mode}: first pass {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        for _ in range(runs):
            for mode, model in models.items():
                seconds[mode].append(embed_all(model, images)[1])
        exact = seconds["float32, the default of a CPU"]
        print(f"{device:34} images/s  ratio  cosine with timm's: mean, least")
        for mode in MODES:
            rate = len(images) / statistics.median(seconds[mode])
            ratio = statistics.median(plain / own for plain, own in zip(exact, seconds[mode], strict=True))
            cosines = (vectors[mode] * reference).sum(dim=1)
            print(f"{mode:34} {rate:8.0f} {ratio:6.2f}  {cosines.mean():.6f}, {cosines.min():.6f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
