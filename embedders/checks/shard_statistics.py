"""Surveys a shard before it is embedded: samples, formats, sizes, and the samples that fail with any embedder."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from embedders.output.columns import Columns
from embedders.output.failed import FailureKind, SampleError
from embedders.reading.end import ends_in_zeros
from embedders.reading.images import ImageError, convert_to_rgb, open_image
from embedders.reading.metadata import read_metadata
from embedders.reading.samples import Sample, read_samples, select_image

# A large shard is read up to the first of these limits.
MAX_SAMPLES, MAX_BYTES = 2000, 256 << 20
# Number of images that are decoded fully; for the others, only the header is read.
DECODED_IMAGES = 64


@dataclass
class Survey:
    """The content of a shard, or of the part that was read.

    Attributes:
        tar_path: Path of the shard.
        total_bytes: Size of the shard.
        read_bytes: How much was read; uncompressed bytes if the shard is compressed and was not read whole.
        samples: Number of samples.
        suffixes: Number of members by suffix.
        fields: Number of samples by metadata field that is not null, for the needed fields.
        formats: Number of images by format, detected from their first bytes.
        image_bytes: Sizes of the images, in bytes.
        sides: Width and height of the images, in pixels.
        problems: Number of samples that will fail, by kind.
        first_problems: A description of the first sample of each kind.
    """

    tar_path: str
    total_bytes: int = 0
    read_bytes: int = 0
    samples: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    image_bytes: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    problems: Counter[FailureKind] = field(default_factory=Counter)
    first_problems: dict[FailureKind, str] = field(default_factory=dict)

    def add_problem(self, kind: FailureKind, message: str) -> None:
        """Count a sample that will fail."""
        self.problems[kind] += 1
        self.first_problems.setdefault(kind, message)

    def describe(self) -> str:
        """Return the survey as one line."""
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


def survey_shard(tar_path: str, columns: Columns | None = None, image_suffix: str = "") -> Survey:
    """Read a shard, or the first part of a large one and its end, which may be missing.

    Args:
        tar_path: The shard.
        columns: The columns next to the vectors; by default only the key.
        image_suffix: As in `samples.select_image`.

    Raises:
        ShardError: The shard is missing or cannot be read. Damage is not an error but one of `problems`.
    """
    survey, columns = Survey(tar_path), columns or Columns()
    for sample in read_samples(tar_path, accept_damage=True):
        if survey.samples >= MAX_SAMPLES or sample.offset >= MAX_BYTES:
            survey.read_bytes = sample.offset
            if ends_in_zeros(tar_path):
                survey.add_problem(FailureKind.DAMAGED_TAR, "its end: more zeros than a program writes")
            break
        survey.samples += 1
        survey.suffixes.update(sample.members.keys())
        try:
            if sample.problem is not None:
                raise SampleError(*sample.problem)
            _survey_sample(sample, survey, columns, image_suffix)
        except SampleError as error:
            survey.add_problem(error.kind, f"{sample.account!r}: {error}")
    survey.total_bytes = Path(tar_path).stat().st_size
    survey.read_bytes = survey.read_bytes or survey.total_bytes
    return survey


def _survey_sample(sample: Sample, survey: Survey, columns: Columns, image_suffix: str) -> None:
    suffix, encoded = select_image(sample, image_suffix)
    survey.image_bytes.append(len(encoded))
    try:
        image = open_image(encoded)
        survey.formats[image.format or "unknown"] += 1
        survey.sides.append(image.size)
        if len(survey.sides) <= DECODED_IMAGES:
            convert_to_rgb(image)
    except ImageError as error:
        raise SampleError(error.kind, f".{suffix}: {error}") from error
    metadata = read_metadata(sample, columns.needed)
    survey.fields.update(name for name, value in metadata.items() if value is not None)
    if wrong := columns.read([metadata])[1]:
        raise SampleError(FailureKind.BAD_METADATA, wrong[0])
