"""What a shard holds, before anything is embedded: samples, formats, sizes, and what any embedder would fail."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from embedders.output.failed import FailureKind, SampleError
from embedders.reading.images import convert_to_rgb, open_image
from embedders.reading.samples import Sample, read_metadata, read_samples, select_image

# A huge shard is not read whole: whichever of the two comes first.
MAX_SAMPLES, MAX_BYTES = 2000, 256 << 20
# Of so many images the pixels are decoded; of the others, only the header is read.
DECODED_IMAGES = 64


@dataclass
class Survey:
    """What a shard holds, as far as it was read.

    Attributes:
        tar_path: Path of the shard.
        total_bytes: Its size.
        read_bytes: How much of it was read; of a compressed one in uncompressed bytes, unless it was read whole.
        samples: Number of samples.
        suffixes: Number of members by suffix.
        formats: Number of images by format, as their first bytes tell it.
        image_bytes: Sizes of the images, in bytes.
        sides: Width and height of the images, in pixels.
        problems: Number of samples that will fail, by kind.
        first_problems: The first of each kind, in words.
    """

    tar_path: str
    total_bytes: int = 0
    read_bytes: int = 0
    samples: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    image_bytes: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    problems: Counter[FailureKind] = field(default_factory=Counter)
    first_problems: dict[FailureKind, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Say it in a line."""
        part = "" if self.read_bytes == self.total_bytes else f" in its first {self.read_bytes / 1e6:.0f} MB"
        parts = [f"{self.samples} samples{part}, {len(self.image_bytes)} with an image"]
        if self.sides:
            shares = [f"{count / len(self.sides):.0%} {name}" for name, count in self.formats.most_common(5)]
            parts.append(", ".join(shares))
            kilobytes = [size / 1000 for size in (min(self.image_bytes), max(self.image_bytes))]
            parts.append(
                f"{kilobytes[0]:.0f} to {kilobytes[1]:.0f} kB, {median(self.image_bytes) / 1000:.0f} in the median"
            )
            width, height = (median(side) for side in zip(*self.sides, strict=True))
            parts.append(f"{width:.0f} x {height:.0f} pixels in the median")
        parts.append("members " + ", ".join(f"{count} .{name}" for name, count in self.suffixes.most_common(8)))
        return "; ".join(parts)


def survey_shard(tar_path: str, id_col: str = "__key__") -> Survey:
    """Read a shard once, or the first part of a large one.

    Args:
        tar_path: The shard.
        id_col: The metadata field that identifies a sample.

    Raises:
        ShardError: It is missing or cannot be read; damage in it is a problem among the others.
    """
    survey = Survey(tar_path)
    for sample in read_samples(tar_path, accept_damage=True):
        if survey.samples >= MAX_SAMPLES or sample.offset >= MAX_BYTES:
            survey.read_bytes = sample.offset
            break
        survey.samples += 1
        survey.suffixes.update(sample.members.keys())
        try:
            if sample.problem is not None:
                raise SampleError(*sample.problem)
            _survey_sample(sample, survey, id_col)
        except SampleError as error:
            survey.problems[error.kind] += 1
            survey.first_problems.setdefault(error.kind, f"{sample.key!r}: {error}")
    survey.total_bytes = Path(tar_path).stat().st_size
    survey.read_bytes = survey.read_bytes or survey.total_bytes
    return survey


def _survey_sample(sample: Sample, survey: Survey, id_col: str) -> None:
    _, encoded = select_image(sample)
    survey.image_bytes.append(len(encoded))
    image = open_image(encoded)
    survey.formats[image.format] += 1
    survey.sides.append(image.size)
    if len(survey.sides) <= DECODED_IMAGES:
        convert_to_rgb(image)
    if read_metadata(sample).get(id_col) is None:
        raise SampleError(FailureKind.BAD_METADATA, f"has no {id_col!r} (id_col), or null there")
