"""What a shard holds, before anything is embedded: samples, formats, sizes, and what will fail. Needs no torch."""

from collections import Counter
from dataclasses import dataclass, field

from embedders.shards import Sample, read_samples, select_image


@dataclass
class Survey:
    """What a shard holds.

    Attributes:
        tar_path: Path of the shard.
        samples: Number of samples.
        suffixes: Number of members by suffix, most frequent first.
        formats: Number of images by suffix, most frequent first.
        image_bytes: Sizes of the images, in bytes.
        problems: Number of samples that will fail, by kind.
        first_problems: The first of each kind, in words.
    """

    tar_path: str
    samples: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    image_bytes: list[int] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    first_problems: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Say it in a line."""
        images = len(self.image_bytes)
        formats = ", ".join(f"{count / images:.0%} .{suffix}" for suffix, count in self.formats.most_common(5))
        others = sorted(set(self.suffixes) - set(self.formats))
        beside = f"; beside them {', '.join(f'.{suffix}' for suffix in others[:8])}" if others else ""
        mean_kb = sum(self.image_bytes) / max(images, 1) / 1000
        return f"{self.samples} samples, {images} images of {mean_kb:.0f} kB in the mean: {formats or 'none'}{beside}"


def survey_shard(tar_path: str) -> Survey:
    """Read a shard once, without decoding an image.

    Raises:
        ShardError: It is missing or no tar; damage further in is a problem among the others.
    """
    survey = Survey(tar_path)
    for sample in read_samples(tar_path, accept_damage=True):
        survey.samples += 1
        survey.suffixes.update(sample.members.keys())
        problem = sample.problem or _find_problem(sample, survey)
        if problem is not None:
            kind, message = problem
            survey.problems[kind] += 1
            survey.first_problems.setdefault(kind, f"{sample.key!r}: {message}")
    return survey


def _find_problem(sample: Sample, survey: Survey) -> tuple[str, str] | None:
    suffix, image = select_image(sample)
    if suffix is None:
        return "no_single_image", image
    survey.formats[suffix] += 1
    survey.image_bytes.append(len(image))
    return None if image else ("empty_image", f".{suffix} has no bytes")
