"""The check before a run: the class, its loader and its model, what a shard holds, and how long all will take."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from embedders.contract import Finding, Speed, check_embedder
from embedders.errors import EmbedderError
from embedders.locate import build_embedder
from embedders.survey import Survey, survey_shard

ADVICE = {
    "no_single_image": "give each sample one image, or name the one to take without a second dot (0001.jpg)",
    "repeated_key": "rename the members: the key ends at the first dot of the name, and its members must be adjacent",
    "bad_name": "rename or remove the member: a name needs a key, a dot and a suffix",
}


@dataclass
class Check:
    """What was found.

    Attributes:
        findings: Each thing that was looked at.
        survey: What the first shard holds.
        shards: Number of shards.
        total_bytes: Their size.
        speed: How fast the tried images went through, if the embedder came so far.
        estimate: For all the shards: `images`, `images_per_s`, `seconds` and `output_bytes`.
    """

    findings: list[Finding]
    survey: Survey
    shards: int
    total_bytes: int
    speed: Speed | None = None
    estimate: dict[str, float] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Number of findings that are wrong."""
        return sum(finding.is_wrong for finding in self.findings)

    def describe(self) -> str:
        """Say it in a line for each finding, and one for the estimate."""
        lines = [str(finding) for finding in self.findings]
        if self.estimate:
            images, per_s = self.estimate["images"], self.estimate["images_per_s"]
            lines.append(
                f"estimate: {self.shards} shards of about {images:.0f} images in all; at {per_s:.0f} images/s, as "
                f"here, one job after the other takes {timedelta(seconds=round(images / per_s))} h, and makes "
                f"{self.estimate['output_bytes'] / 1e6:.1f} MB of vectors"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "wrong": self.wrong,
            "findings": [asdict(finding) for finding in self.findings],
            "shard": {"path": self.survey.tar_path, "samples": self.survey.samples, "formats": self.survey.formats}
            | {"suffixes": self.survey.suffixes, "problems": self.survey.problems},
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
        ShardError: The first shard is no tar.
    """
    sizes = [os.path.getsize(path) for path in tar_paths]
    survey = survey_shard(tar_paths[0])
    check = Check([], survey, len(tar_paths), sum(sizes))

    def note(speed: Speed) -> None:
        check.speed = speed

    try:
        embedder = build_embedder(class_path, args)
    except EmbedderError as error:
        check.findings.append(Finding("class", str(error), is_wrong=True))
    else:
        check.findings.append(Finding("class", f"{class_path} is found and can be built"))
        check.findings += check_embedder(embedder, tar_paths[0], device, id_col, note)
    check.findings += describe_survey(survey)
    if check.speed is not None:
        images = survey.samples * check.total_bytes / max(sizes[0], 1)
        images_per_s = check.speed.images / check.speed.seconds
        check.estimate = {
            "images": images,
            "images_per_s": images_per_s,
            "seconds": images / images_per_s,
            "output_bytes": images * check.speed.dimension * 4,
        }
    return check


def describe_survey(survey: Survey) -> list[Finding]:
    """Turn what a shard holds into findings; samples that will fail are wrong, each kind with what to do."""
    findings = [Finding("shard", f"{survey.tar_path}: {survey.describe()}")]
    for kind, count in survey.problems.most_common():
        advice = ADVICE.get(kind, "mend the shard, or let these samples be named in its ledger")
        message = f"{count} of {survey.samples} samples will fail, {kind}, as {survey.first_problems[kind]}; {advice}"
        findings.append(Finding("shard", message, is_wrong=True))
    return findings
