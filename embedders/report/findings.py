"""What a report says first: is a run sound, are its vectors, and what to do where they are not. Owns the limits."""

from dataclasses import dataclass

import numpy as np

from embedders.output.strays import describe_strays
from embedders.output.summary import Summary
from embedders.output.timings import find_bottleneck
from embedders.report.neighbours import count_main_directions, measure_spread, normalize

# Two pictures with such a cosine are called near copies; most models give as much to a crop or another size.
NEAR_COPY = 0.98
# With such a mean cosine of all pairs the vectors tell little apart.
ALIKE = 0.9
# Norms that differ by less are the same, in float16 too.
SAME_NORM = 2e-3


# In the order in which they are shown.
LEVELS = ("wrong", "look", "note", "good")


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        level: One of `LEVELS`.
        text: What was found, and what to do.
        section: Id of the part of the page that has more.
    """

    level: str
    text: str
    section: str


@dataclass(frozen=True)
class VectorChecks:
    """Measures of a sample of vectors.

    Attributes:
        rows: Number of vectors.
        dimension: Numbers of each.
        norms: Their Euclidean norms, those of broken ones left out.
        broken: Number of vectors that are zero or hold NaN or infinity.
        constant: Number of places that hold the same number in every vector.
        spread: Mean cosine of two vectors.
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
        """Whether all the vectors have the same norm, but for rounding."""
        return not len(self.norms) or bool(np.ptp(self.norms) <= SAME_NORM * self.norms.max())


def find_sound(vectors: np.ndarray) -> np.ndarray:
    """Say of each row whether it has a direction: it is finite, and not zero."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors, axis=1)
    return np.isfinite(norms) & (norms > 0)


def check_vectors(vectors: np.ndarray) -> VectorChecks:
    """Measure vectors of shape (rows, dimension)."""
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
    """Say how the run went."""
    findings = []
    if unfinished:
        text = (
            f"{unfinished:,} shards are not finished, and not counted here. Their logs say why; run snakemake again."
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
    if summary.strays:
        findings.append(Finding("look", f"{describe_strays(summary.strays)}.", "totals"))
    if summary.seconds:
        findings.append(Finding("note", f"Speed: {find_bottleneck(summary.seconds)}.", "speed"))
    return findings


def judge_vectors(checks: VectorChecks, near_copies: int | None) -> list[Finding]:
    """Say whether vectors look as those of a model that works.

    Args:
        checks: Their measures.
        near_copies: Number of images with a near copy among them; `None` where the copies of the whole run are known.
    """
    findings = []
    if checks.broken:
        text = (
            f"{checks.broken:,} of {checks.rows:,} vectors are zero, or hold NaN or infinity: no search finds them."
        )
        findings.append(
            Finding("wrong", f"{text} Look at the model in half precision, and at these images.", "vectors")
        )
    if checks.have_one_norm and len(checks.norms):
        norm = f"All the vectors have norm {np.median(checks.norms):.3g}"
        text = "a dot product is their cosine" if abs(np.median(checks.norms) - 1) < SAME_NORM else "but not 1"
        findings.append(Finding("good", f"{norm}: {text}.", "vectors"))
    elif len(checks.norms):
        text = f"The norms of the vectors go from {checks.norms.min():.3g} to {checks.norms.max():.3g}."
        findings.append(Finding("look", f"{text} Divide by them where you compare by dot product.", "vectors"))
    if checks.constant:
        text = f"{checks.constant:,} of the {checks.dimension:,} numbers are the same in every vector."
        findings.append(Finding("look", f"{text} A model without its weights looks so.", "vectors"))
    if checks.rows > 1 and checks.spread > ALIKE:
        text = f"The vectors are much alike: two of them have a cosine of {checks.spread:.2f} in the mean."
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
