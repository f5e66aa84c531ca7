"""Tests a container image: embeds one picture with a small model of timm, with the command that a job runs."""

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

with tempfile.TemporaryDirectory() as folder:
    picture = io.BytesIO()
    Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(picture, "JPEG")
    with tarfile.open(f"{folder}/one.tar", "w") as shard:
        member = tarfile.TarInfo("0001.jpg")
        member.size = picture.tell()
        shard.addfile(member, io.BytesIO(picture.getvalue()))
    command = [sys.executable, "-m", "embedders", "embed", f"{folder}/one.tar", f"{folder}/one.parquet"]
    model = ["--embedder", "embedders:TimmImageEmbedder", "--embedder-args", '{"model_name": "test_vit.r160_in1k"}']
    subprocess.run([*command, *model, "--device", "cpu"], check=True, cwd=folder)
    rows = pq.read_table(Path(folder, "one.parquet"))
    if rows["key"].to_pylist() != ["0001"]:
        sys.exit(f"expected a vector of one image, got {rows}")
print("embedded one image")
