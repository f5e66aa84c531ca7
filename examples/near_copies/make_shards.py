"""Makes shards like those of img2dataset: photographs of scikit-image, some of them in several copies.

The only argument is the folder to write to. Nothing is downloaded. To make such shards from a list of URLs:
img2dataset --url_list urls.txt --output_folder data --output_format webdataset
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import skimage
from PIL import Image

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "retina.jpg", "rocket.jpg"),
)
SHARDS = 3


def make_copies(photograph: Image.Image) -> list[tuple[Image.Image, int]]:
    """Return copies of a photograph as on the web (smaller, original, cropped, compressed), each with its quality."""
    width, height = photograph.size
    small = photograph.resize((width // 2, height // 2), Image.Resampling.LANCZOS)
    cut = photograph.crop((width // 50, height // 50, width - width // 50, height - height // 50))
    return [(small, 90), (photograph, 95), (cut, 90), (photograph, 30)]


def main() -> None:
    """Write the shards, with four copies of every second photograph and one image of the others."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, name in enumerate(PHOTOGRAPHS):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photograph:
            copies = make_copies(photograph.convert("RGB"))
        images += [(name, image, quality) for image, quality in (copies if number % 2 == 0 else copies[1:2])]
    images = [images[number] for start in range(SHARDS) for number in range(start, len(images), SHARDS)]
    size = -(-len(images) // SHARDS)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, (name, image, quality) in enumerate(images[shard * size : (shard + 1) * size]):
                key, jpeg = f"{shard:05d}{number:04d}", io.BytesIO()
                image.save(jpeg, "JPEG", quality=quality)
                caption = name.partition(".")[0]
                fields = {"caption": caption, "key": key, "width": image.width, "height": image.height}
                members = {"jpg": jpeg.getvalue(), "txt": caption.encode(), "json": json.dumps(fields).encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
