"""The check before a run: the class, its loader and model, the content of a shard, and an estimate of the run."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from embedders.base import ImageEmbedder
from embedders.checks.contract import Speed, check_embedder
from embedders.checks.loader_contract import Finding
from embedders.checks.shard_statistics import Survey, survey_shard
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder, locate_class
from embedders.output.columns import Columns
from embedders.output.failed import FailureKind
from embedders.output.timings import describe_duration
from embedders.reading.copies import Copies
from embedders.reading.remote import Version
from embedders.reading.samples import check_suffix

# Maximum number of shards, evenly spaced, whose sizes are looked up: a lookup may be slow on a network file system.
SIZED_SHARDS = 1000


@dataclass
class Check:
    """The result of a check.

    Attributes:
        findings: One for each thing that was checked.
        survey: The content of the first shard.
        shards: Number of shards.
        estimate: Estimate for all the shards, empty if the embedder failed earlier: `images`; `images_per_s` of one
            job, with its parts `loaded_per_s` and `embedded_per_s`; `seconds`; `output_bytes` as float32.
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
        """Return the estimate as one line: how long all the shards take, and the size of the output."""
        said = self.estimate
        shards = f"{self.shards} shard{'s' * (self.shards > 1)} of about {said['images']:.0f} images in all"
        bytes_ = said["output_bytes"]
        size = f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"
        return (
            f"{shards}: {describe_duration(said['seconds'])} with one job at a time, at {said['images_per_s']:.0f} "
            f"images/s (the loader alone {said['loaded_per_s']:.0f}, the model alone "
            f"{said['embedded_per_s']:.0f}); {size} of vectors"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the check as a dict that fits into JSON."""
        names = ("samples", "total_bytes", "read_bytes", "suffixes", "formats", "problems")
        return {
            "wrong": self.wrong,
            "findings": [asdict(finding) for finding in self.findings],
            "shards": self.shards,
            "shard": {"path": self.survey.tar_path} | {name: getattr(self.survey, name) for name in names},
            "estimate": self.estimate,
        }


def check_before_run(
    class_path: str,
    args: Mapping[str, Any],
    tar_paths: Sequence[str],
    device: str,
    id_col: str = "__key__",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
    image_suffix: str = "",
    versions: Mapping[str, Version] = MappingProxyType({}),
) -> Check:
    """Check an embedder and the first of its shards.

    Args:
        class_path: As in `locate.split_class_path`.
        args: Arguments of the class.
        tar_paths: The shards; the first one is tried, and the sizes of the others are used for the estimate.
        device: `"cuda"` or `"cpu"`.
        id_col: The metadata field that identifies a sample.
        metadata_columns: As in `columns.Columns`.
        image_suffix: As in `embed.embed_shards`.
        versions: Of the shards with an address, from `stores.find_versions`.

    Raises:
        ConfigError: `metadata_columns` or `image_suffix` cannot be used.
        ShardError: The first shard cannot be read.
    """
    columns, image_suffix = Columns(id_col, metadata_columns), check_suffix(image_suffix)
    speeds: list[Speed] = []
    build = partial(build_embedder, class_path, args)
    with Copies(tar_paths[:1]) as copies:
        first = copies.find(tar_paths[0])
        findings = list(check_embedder(build, first, device, id_col, speeds.append, image_suffix, metadata_columns))
        is_default = has_default_loader(class_path)  # what a custom loader makes of which fields is unknown
        survey = survey_shard(first, columns if is_default else Columns(id_col), image_suffix)
        survey.tar_path = tar_paths[0]
        findings = [replace(finding, message=copies.name_in(finding.message)) for finding in findings]
    findings += describe_survey(survey)
    if is_default:
        findings += check_columns(columns, survey)
    check = Check(findings, survey, len(tar_paths))
    if speeds:
        sized = tar_paths[:: max(1, len(tar_paths) // SIZED_SHARDS)]
        sizes = [(versions[path].bytes or 0) if path in versions else os.path.getsize(path) for path in sized]
        total_bytes = sum(sizes) / len(sizes) * len(tar_paths)
        check.estimate = estimate_run(speeds[0], survey.samples * total_bytes / survey.read_bytes)
    return check


def estimate_run(speed: Speed, images: float) -> dict[str, float]:
    """Return the estimate for this number of images; in a job, the loader and the model work in parallel."""
    images_per_s = min(speed.loaded_per_s, speed.embedded_per_s)
    return {
        "images": images,
        "images_per_s": images_per_s,
        "loaded_per_s": speed.loaded_per_s,
        "embedded_per_s": speed.embedded_per_s,
        "seconds": images / images_per_s,
        "output_bytes": images * speed.dimension * 4,
    }


def has_default_loader(class_path: str) -> bool:
    """Return whether a class does not override `load_dataset_shard`; true if the class cannot be located."""
    try:
        located: Any = locate_class(class_path)
        return located.load_dataset_shard is ImageEmbedder.load_dataset_shard
    except EmbedderError:
        return True


def check_columns(columns: Columns, survey: Survey) -> Iterator[Finding]:
    """Yield a finding for each column that is null in all samples, with the field that may have been meant."""
    if not survey.fields:  # no good sample, or no column
        return
    known = {*survey.fields, *survey.suffixes} - {"__key__", "json"}
    for name in columns.needed or ():
        if name not in survey.fields:
            near = difflib.get_close_matches(name, known, 1)
            others = f"there are {', '.join(sorted(known)[:20]) or 'none'}"
            hint = f"did you mean {near[0]!r}?" if near else f"expected a field of the samples; {others}"
            message = f"no sample has the field {name!r}: its column would be null in every row; {hint}"
            yield Finding("shard", message, is_wrong=True)


def describe_survey(survey: Survey) -> list[Finding]:
    """Return the survey of a shard as findings; each kind of sample that will fail is wrong, with what to do."""
    findings = [Finding("shard", f"{survey.tar_path}: {survey.describe()}")]
    for kind, count in survey.problems.most_common():
        message = (
            f"{count} of {survey.samples} samples will fail, {kind}, for example {survey.first_problems[kind]}; "
            f"{kind.fix}"
        )
        if kind is FailureKind.DAMAGED_TAR and count < survey.samples:  # else no intact sample is left to embed
            message += ", or set accept_damaged_shards: true"
        findings.append(Finding("shard", message, is_wrong=True))
    return findings
