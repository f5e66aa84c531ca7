"""The findings at the top of a report: whether the run and its vectors are sound, and what to do if not.

Owns the limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embedders.output.strays import describe_strays
from embedders.output.summary import Summary
from embedders.output.timings import find_bottleneck
from embedders.output.vectors import Shape, describe_shapes
from embedders.report.neighbours import count_main_directions, measure_spread, normalize

# Minimum cosine similarity of near copies; with most models, crops and other sizes of an image reach it.
NEAR_COPY = 0.98
# Above this mean cosine of all pairs, the vectors hardly distinguish images.
ALIKE = 0.9
# Norms with a smaller relative difference count as the same, also in float16.
SAME_NORM = 2e-3


# In the order on the page.
LEVELS = ("wrong", "look", "note", "good")


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        level: One of `LEVELS`.
        text: What was found, and what to do.
        section: Id of the section of the page with details.
    """

    level: str
    text: str
    section: str


@dataclass(frozen=True)
class VectorChecks:
    """Measures of a sample of vectors.

    Attributes:
        rows: Number of vectors.
        dimension: Dimension of the vectors.
        norms: Euclidean norms of the vectors that are not broken.
        broken: Number of vectors that are zero or contain NaN or infinity.
        constant: Number of dimensions with the same value in every vector.
        spread: Mean cosine similarity of two vectors.
        directions: Number of principal components with 90 % of the variance.
    """

    rows: int
    dimension: int
    norms: np.ndarray
    broken: int
    constant: int
    spread: float
    directions: int

    @property
    def have_one_norm(self) -> bool:
        """Whether all the vectors have the same norm, apart from rounding."""
        return not len(self.norms) or bool(np.ptp(self.norms) <= SAME_NORM * self.norms.max())


def find_sound(vectors: np.ndarray) -> np.ndarray:
    """Return for each row whether it has a direction, that is, it is finite and not zero."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors, axis=1)
    return np.isfinite(norms) & (norms > 0)


def check_vectors(vectors: np.ndarray) -> VectorChecks:
    """Return the measures of vectors of shape (rows, dimension)."""
    sound = vectors[find_sound(vectors)]
    unit = normalize(sound)
    return VectorChecks(
        rows=len(vectors),
        dimension=vectors.shape[1],
        norms=np.linalg.norm(sound, axis=1),
        broken=len(vectors) - len(sound),
        constant=int((np.ptp(sound, axis=0) == 0).sum()) if len(sound) > 1 else 0,
        spread=measure_spread(unit),
        directions=count_main_directions(unit) if len(unit) else 0,
    )


def judge_run(summary: Summary, unfinished: int) -> list[Finding]:
    """Return the findings about the run."""
    findings = []
    if unfinished:
        text = (
            f"{unfinished:,} shards are not finished and not counted here. Their logs say why; run snakemake again."
        )
        findings.append(Finding("wrong", text, "totals"))
    if summary.failed:
        kind, count = next(iter(summary.failures.items()))
        share = f"{summary.failed:,} of {summary.samples:,} samples failed ({summary.failed / summary.samples:.2%})"
        findings.append(Finding("look", f"{share}; the most frequent reason is {kind}, {count:,} times.", "failures"))
    elif summary.samples:
        findings.append(Finding("good", f"All {summary.samples:,} samples were embedded.", "totals"))
    if summary.remarks:
        findings.append(Finding("look", f"Images {summary.describe_remarks()}.", "totals"))
    if summary.null_columns:
        text = summary.describe_null_columns()
        findings.append(Finding("look", f"Columns {text}.", "totals"))
    if summary.repeated_ids.ids:
        level = "look" if summary.repeated_ids.is_wrong else "note"
        findings.append(Finding(level, f"{summary.repeated_ids.describe()}.", "totals"))
    if summary.strays:
        findings.append(Finding("look", f"{describe_strays(summary.strays)}.", "totals"))
    if summary.seconds:
        findings.append(Finding("note", f"Speed: {find_bottleneck(summary.seconds)}.", "speed"))
    if summary.usage.gpu_seconds:
        findings.append(Finding("note", f"GPUs: {summary.usage.describe_gpus()}.", "speed"))
    return findings


def judge_columns(shapes: Mapping[str, Shape], shown: str | None) -> list[Finding]:
    """Return the finding that says of which column the page shows the vectors; none if there is only one to show.

    Args:
        shapes: The shapes of all the columns of vectors.
        shown: The one that is shown; `None` if every column has several vectors per image.
    """
    names = describe_shapes(shapes, with_names=True)
    if shown is None:
        text = f"Every image has several vectors, {names}: this page shows no map, neighbours or copies of them."
        return [Finding("note", text, "vectors")]
    if len(shapes) == 1:
        return []
    hint = "`report: {column: NAME}` in config.yaml shows another"
    text = f"Of the columns of vectors, {names}, this page shows {shown!r}; {hint}."
    return [Finding("note", text, "vectors")]


def judge_vectors(checks: VectorChecks, near_copies: int | None) -> list[Finding]:
    """Return the findings about the vectors: whether they look like those of a working model.

    Args:
        checks: Measures of the vectors.
        near_copies: Number of images with a near copy in the sample; `None` if the copies in the whole run are known.
    """
    findings = []
    if checks.broken:
        text = (
            f"{checks.broken:,} of {checks.rows:,} vectors are zero or contain NaN or infinity: no search finds them."
        )
        findings.append(Finding("wrong", f"{text} Check the model in half precision, and these images.", "vectors"))
    if checks.have_one_norm and len(checks.norms):
        norm = f"All the vectors have norm {np.median(checks.norms):.3g}"
        text = "a dot product is their cosine" if abs(np.median(checks.norms) - 1) < SAME_NORM else "but not 1"
        findings.append(Finding("good", f"{norm}: {text}.", "vectors"))
    elif len(checks.norms):
        text = f"The norms of the vectors range from {checks.norms.min():.3g} to {checks.norms.max():.3g}."
        findings.append(Finding("look", f"{text} Normalize them before you compare by dot product.", "vectors"))
    if checks.constant:
        text = f"{checks.constant:,} of the {checks.dimension:,} dimensions have the same value in every vector."
        findings.append(Finding("look", f"{text} This happens if a model has lost its weights.", "vectors"))
    if checks.rows > 1 and checks.spread > ALIKE:
        text = f"The vectors are very similar: the mean cosine of two of them is {checks.spread:.2f}."
        findings.append(Finding("look", f"{text} Check the weights and the preprocessing.", "vectors"))
    if near_copies:
        text = f"{near_copies:,} of {checks.rows:,} images have a near copy (a cosine of {NEAR_COPY} or more)."
        findings.append(
            Finding(
                "look", f"{text} Remove copies before you train or test on these: near_copies lists them.", "pairs"
            )
        )
    elif near_copies is not None and checks.rows > 1:
        text = f"No two of {checks.rows:,} images are near copies (a cosine of {NEAR_COPY} or more)."
        findings.append(Finding("good", text, "pairs"))
    return findings
