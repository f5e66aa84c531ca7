"""The check before a run: the class, its loader and its model, what a shard holds, and how long all will take."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from embedders.checks.contract import Speed, check_embedder
from embedders.checks.loader_contract import Finding
from embedders.checks.shard_statistics import Survey, survey_shard
from embedders.job.locate import build_embedder
from embedders.output.timings import describe_duration

# Sizes that are looked up, of shards that lie evenly among all: on a network file system each may take a while.
SIZED_SHARDS = 1000


@dataclass
class Check:
    """What was found.

    Attributes:
        findings: Each thing that was looked at.
        survey: What the first shard holds.
        shards: Number of shards.
        estimate: For all the shards, if the embedder came so far: `images`; `images_per_s` of one job, and of its
            two parts `loaded_per_s` and `embedded_per_s`; its `seconds`; the `output_bytes` as float32.
    """

    findings: list[Finding]
    survey: Survey
    shards: int
    estimate: dict[str, float] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Number of findings that are wrong."""
        return sum(finding.is_wrong for finding in self.findings)

    def describe_estimate(self) -> str:
        """Say in a line how long all the shards take, and what they make."""
        said = self.estimate
        shards = f"{self.shards} shard{'s' * (self.shards > 1)} of about {said['images']:.0f} images in all"
        bytes_ = said["output_bytes"]
        size = f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"
        return (
            f"{shards}: {describe_duration(said['seconds'])} by one job at a time, at {said['images_per_s']:.0f} "
            f"images/s (the loader alone {said['loaded_per_s']:.0f}, the model alone "
            f"{said['embedded_per_s']:.0f}); {size} of vectors"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        names = ("samples", "total_bytes", "read_bytes", "suffixes", "formats", "problems")
        return {
            "wrong": self.wrong,
            "findings": [asdict(finding) for finding in self.findings],
            "shards": self.shards,
            "shard": {"path": self.survey.tar_path} | {name: getattr(self.survey, name) for name in names},
            "estimate": self.estimate,
        }


def check_before_run(
    class_path: str, args: Mapping[str, Any], tar_paths: Sequence[str], device: str, id_col: str
) -> Check:
    """Check an embedder and the first of its shards.

    Args:
        class_path: As in `locate.split_class_path`.
        args: Arguments of the class.
        tar_paths: The shards; the first one is tried, the sizes of the others serve the estimate.
        device: `"cuda"` or `"cpu"`.
        id_col: The metadata field that identifies a sample.

    Raises:
        ShardError: The first shard cannot be read.
    """
    survey = survey_shard(tar_paths[0], id_col)
    speeds: list[Speed] = []
    build = partial(build_embedder, class_path, args)
    findings = list(check_embedder(build, tar_paths[0], device, id_col, speeds.append))
    check = Check(findings + describe_survey(survey), survey, len(tar_paths))
    if speeds:
        sized = tar_paths[:: max(1, len(tar_paths) // SIZED_SHARDS)]
        total_bytes = sum(map(os.path.getsize, sized)) / len(sized) * len(tar_paths)
        check.estimate = estimate_run(speeds[0], survey.samples * total_bytes / survey.read_bytes)
    return check


def estimate_run(speed: Speed, images: float) -> dict[str, float]:
    """Estimate a run of so many images; in a job, the loader works while the model does."""
    images_per_s = min(speed.loaded_per_s, speed.embedded_per_s)
    return {
        "images": images,
        "images_per_s": images_per_s,
        "loaded_per_s": speed.loaded_per_s,
        "embedded_per_s": speed.embedded_per_s,
        "seconds": images / images_per_s,
        "output_bytes": images * speed.dimension * 4,
    }


def describe_survey(survey: Survey) -> list[Finding]:
    """Turn what a shard holds into findings; samples that will fail are wrong, each kind with what to do."""
    findings = [Finding("shard", f"{survey.tar_path}: {survey.describe()}")]
    for kind, count in survey.problems.most_common():
        message = (
            f"{count} of {survey.samples} samples will fail, {kind}, as {survey.first_problems[kind]}; {kind.fix}"
        )
        findings.append(Finding("shard", message, is_wrong=True))
    return findings
