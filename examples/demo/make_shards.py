"""Makes the demo's shards: crops of the photographs in scikit-image's wheel.

Nothing is downloaded. The only argument is the folder to write to. Every crop is one sample: `chelsea-03.jpg`,
its `.json` (scene, box, credit) and its `.txt`.
"""

import io
import json
import random
import sys
import tarfile
from pathlib import Path

import skimage
from PIL import Image

SHARDS = 4
CROPS_PER_PHOTOGRAPH = 8

# File in skimage/data: caption; credit and terms, as skimage.data's documentation states them.
PHOTOGRAPHS = {
    "astronaut.png": ("the astronaut Eileen Collins", "NASA, public domain"),
    "brick.png": ("a brick wall", "CC0Textures, CC0"),
    "camera.png": ("a photographer and his camera", "Lav Varshney, CC0"),
    "chelsea.png": ("Chelsea the cat", "Stefan van der Walt, CC0"),
    "clock_motion.png": ("a wall clock, blurred by motion", "Stefan van der Walt, public domain"),
    "coffee.png": ("a cup of coffee", "Rachel Michetti, CC0"),
    "coins.png": ("Greek coins from Pompeii", "Brooklyn Museum, no known copyright restrictions"),
    "grass.png": ("grass", "linolafett, CC0"),
    "gravel.png": ("gravel", "CC0Textures, CC0"),
    "hubble_deep_field.jpg": ("the Hubble eXtreme Deep Field", "NASA, public domain"),
    "retina.jpg": ("a human retina", "Mikael Haggstrom, CC0"),
    "rocket.jpg": ("the launch of a Falcon 9", "SpaceX, public domain"),
}


def choose_box(size: tuple[int, int], chance: random.Random) -> tuple[int, int, int, int]:
    """Return a random crop box: 60 to 85 % of each side, anywhere in the photograph."""
    width, height = (round(side * chance.uniform(0.6, 0.85)) for side in size)
    left, top = chance.randint(0, size[0] - width), chance.randint(0, size[1] - height)
    return left, top, left + width, top + height


def make_samples() -> list[tuple[str, dict[str, bytes]]]:
    """Return the samples, key and members by suffix, with the crops of one photograph far apart."""
    folder = Path(skimage.__file__).parent / "data"
    chance = random.Random(0)
    samples = []
    for file_name, (caption, credit) in PHOTOGRAPHS.items():
        scene = file_name.partition(".")[0]
        with Image.open(folder / file_name) as photograph:
            for number in range(CROPS_PER_PHOTOGRAPH):
                box = choose_box(photograph.size, chance)
                image = io.BytesIO()
                photograph.crop(box).save(image, "JPEG", quality=92)
                fields = {"scene": scene, "box": box, "credit": credit}
                members = {"jpg": image.getvalue(), "json": json.dumps(fields).encode(), "txt": caption.encode()}
                samples.append((f"{scene}-{number:02}", members))
    return sorted(samples, key=lambda sample: sample[0][-2:])


def write_shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Write one tar; its bytes depend only on the samples."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def main() -> None:
    """Write the shards to the folder on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    samples = make_samples()
    size = len(samples) // SHARDS
    for number in range(SHARDS):
        write_shard(folder / f"demo-{number:03}.tar", samples[number * size : (number + 1) * size])
    print(f"{folder}: {SHARDS} shards with {len(samples)} crops of {len(PHOTOGRAPHS)} photographs")


if __name__ == "__main__":
    main()
