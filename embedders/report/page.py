"""`results/report.html`: a page about the results of a run. Owns which data it shows.

The page is one self-contained file: it includes the pictures and Bokeh's script, and its content security policy
forbids all other addresses. The same results give the same page.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from embedders.errors import ConfigError
from embedders.output.failed import FailedSample
from embedders.output.files import write_whole
from embedders.output.footers import VectorFile
from embedders.output.parquet import read_scores
from embedders.output.run import read_shards
from embedders.output.timings import describe_seconds, split_seconds
from embedders.output.usage import describe_bytes, describe_hours
from embedders.output.vectors import choose_column, describe_shapes
from embedders.report.charts import draw_bars, draw_histogram, draw_points, read_script
from embedders.report.copies import CopyGroups, gather_copies
from embedders.report.findings import (
    LEVELS,
    NEAR_COPY,
    VectorChecks,
    check_vectors,
    find_sound,
    judge_columns,
    judge_run,
    judge_vectors,
)
from embedders.report.neighbours import draw_map, find_closest_pairs, find_nearest, find_outliers, normalize
from embedders.report.run import Run, read_run
from embedders.report.subset import SampleName, VectorSample, sample_vectors
from embedders.report.thumbnails import LARGE_SIDE, SMALL_SIDE, Thumbnails

MAP_POINTS = 2_000
PAIRS, OUTLIERS, QUERIES, SLOWEST = 8, 12, 6, 5


def write_report(folder: str | Path, path: str | Path, column: str = "") -> None:
    """Write the report of a run.

    Args:
        folder: Its output folder.
        path: The HTML file, which appears whole or not at all.
        column: The column of vectors to show; by default the first one with one vector per image, if there is one.

    Raises:
        ConfigError: The folder has no run, none of its shards is finished, or there is no such column.
        ShardError: An output of a shard is truncated.
        OutputError: The report cannot be written.
    """
    tar_paths = read_shards(Path(folder))
    run = read_run(Path(folder), list(tar_paths))
    if run.first is None:
        raise ConfigError(f"{str(folder)!r}: none of its {len(tar_paths)} shards is finished; run snakemake first")
    page = describe_run(Path(folder), run, run.first, tar_paths, column)
    # Text from the tars is not trusted: all of it is escaped, also in the JSON of the charts (`tojson`).
    templates = jinja2.Environment(loader=jinja2.PackageLoader("embedders.report", "."), autoescape=True)
    templates.policies["json.dumps_kwargs"] = {}  # by default it sorts the keys, but Bokeh depends on their order
    with write_whole(path) as file:
        file.write(templates.get_template("page.html.jinja").render(page, script=read_script()).encode())


@dataclass(frozen=True)
class Choice:
    """The rows of a sample that the page shows.

    Attributes:
        pairs: The closest pairs, with their cosine.
        outliers: The rows with the lowest mean cosine to their nearest neighbours, with that mean.
        queries: Random rows with cosine 1, each followed by its nearest neighbours and their cosines.
        points: The rows on the map, which include pairs and outliers.
        nearest: The cosine of every row to its nearest neighbour.
    """

    pairs: list[tuple[int, int, float]]
    outliers: list[tuple[int, float]]
    queries: list[list[tuple[int, float]]]
    points: list[int]
    nearest: np.ndarray

    @property
    def notes(self) -> dict[int, str]:
        """The note of each highlighted row on the map."""
        notes = {row: "among the closest pairs" for one, other, _ in self.pairs for row in (one, other)}
        return notes | {row: "an outlier" for row, _ in self.outliers}


def choose_rows(vectors: np.ndarray) -> Choice:
    """Choose the rows to show from vectors of norm 1; deterministic."""
    near, cosines = find_nearest(vectors)
    order = np.random.default_rng(0).permutation(len(vectors)).tolist()
    choice = Choice(
        pairs=find_closest_pairs(near, cosines, PAIRS),
        outliers=find_outliers(cosines, min(OUTLIERS, len(vectors) // 8)),
        queries=[
            [(row, 1.0), *zip(near[row].tolist(), cosines[row].tolist(), strict=True)] for row in order[:QUERIES]
        ],
        points=[],
        nearest=cosines[:, 0] if cosines.shape[1] else np.empty(0),
    )
    return replace(choice, points=sorted({*order[:MAP_POINTS], *choice.notes}))


def describe_run(
    folder: Path, run: Run, first: VectorFile, tar_paths: Mapping[str, str], column: str = ""
) -> dict[str, Any]:
    """Return the variables of the page's template."""
    rows = {shard["name"]: shard["rows"] for shard in run.shards}
    if column or any(stored.parts is None for stored in first.columns.values()):
        shown = choose_column(first.columns, column, str(folder))
        everything = sample_vectors(folder / "embeddings", rows, shown.shape[-1], column=shown.name)
    else:
        shown, everything = None, VectorSample([], np.empty((0, 1), np.float32), is_whole=True)
    checks = check_vectors(everything.vectors)
    sample = everything.choose(find_sound(everything.vectors))
    vectors = normalize(sample.vectors)
    choice = choose_rows(vectors)
    thumbnails = Thumbnails(tar_paths, first.provenance.image_suffix)
    copies = gather_copies(folder, rows, run.made_from)
    thumbnails.read(size_pictures(sample, choice, run, copies))

    sampled_shards = sorted({name.shard for name in everything.names})
    scores = gather_scores(folder, sampled_shards, run.summary.strays)
    charts = draw_charts(run.shards, checks, choice.nearest)
    charts |= {f"score {name}": draw_histogram(values, name) for name, values in scores.items()}
    if len(choice.points) > 1:
        names = [sample.names[row] for row in choice.points]
        charts["map"] = draw_points(
            draw_map(vectors[choice.points]),
            [name.key for name in names],
            [name.shard for name in names],
            [choice.notes.get(row, "") for row in choice.points],
            [thumbnails.get(name) or "" for name in names],
        )
    findings = judge_run(run.summary, len(run.unfinished))
    if shown:
        findings += judge_vectors(checks, None if copies else int((choice.nearest >= NEAR_COPY).sum()))
    findings += [copies.judge()] if copies else []
    findings += judge_columns(first.shapes, shown.name if shown else None)
    timed = [shard for shard in run.shards if shard["speed"]]
    return {
        "folder": str(folder),
        "run": run,
        "asked_column": column,
        "arguments": json.dumps(first.provenance.embedder.args),
        "is_shown": shown is not None,
        "dimension": f"{shown.shape[-1]:,}" if shown else describe_shapes(first.shapes),
        "findings": sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        "checks": checks,
        "choice": choice,
        "copies": copies,
        "names": sample.names,
        "name_failed": name_failed,
        "thumbnails": thumbnails,
        "is_sample": not everything.is_whole,
        "sampled_shards": len(sampled_shards),
        "charts": charts,
        "scores": list(scores),
        "time": describe_time(run.summary.seconds),
        "describe_bytes": describe_bytes,
        "describe_hours": describe_hours,
        "slowest": sorted(timed, key=lambda shard: shard["speed"])[:SLOWEST],
    }


def size_pictures(sample: VectorSample, choice: Choice, run: Run, copies: CopyGroups | None) -> dict[SampleName, int]:
    """Return the samples to show as pictures, with the longer side of each in pixels."""
    sides = {sample.names[row]: SMALL_SIDE for row in choice.points}
    large = {*choice.notes, *(row for query in choice.queries for row, _ in query)}
    sides |= {sample.names[row]: LARGE_SIDE for row in sorted(large)}
    sides |= {name: LARGE_SIDE for group in (copies.groups if copies else ()) for name in group}
    return sides | {name_failed(*failed): LARGE_SIDE for named in run.failed.values() for failed in named}


def draw_charts(shards: list[dict], checks: VectorChecks, nearest: np.ndarray) -> dict[str, Any]:
    """Draw the charts that need no pictures."""
    charts = {}
    if any(shard["speed"] for shard in shards):
        notes = [
            f"{shard['rows']:,} images in {shard['seconds']:.1f} s, {shard['failed']} failed" for shard in shards
        ]
        names, speeds = [shard["name"] for shard in shards], [shard["speed"] for shard in shards]
        charts["speed"] = draw_bars(names, speeds, notes, "images/s")
    if not checks.have_one_norm:
        charts["norms"] = draw_histogram(checks.norms, "norm")
    if len(nearest):
        charts["nearest"] = draw_histogram(nearest, "cosine to the nearest neighbour")
    return charts


def describe_time(seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return where the time went: the parts of the total time of all shards, and the time of the other threads."""
    parts = split_seconds(seconds)
    total = sum(parts.values())
    shares = [(phrase, spent, spent / total) for phrase, spent in parts.items()] if total else []
    meanwhile = {name: seconds[name] for name in ("fetching", "reading", "decoding") if name in seconds}
    return {"total": total, "shares": shares, "meanwhile": describe_seconds(meanwhile)}


def gather_scores(folder: Path, shards: list[str], strays: Collection[str]) -> dict[str, np.ndarray]:
    """Return the finite scores of these shards by the name of the score, without strays; text is left out."""
    scores = {}
    for place in sorted((folder / "scores").glob("*/")):
        paths = [path for shard in shards if (path := place / f"{shard}.parquet").is_file()]
        paths = [path for path in paths if str(path.relative_to(folder)) not in strays]
        values = np.concatenate([read_scores(str(path)) for path in paths] or [np.empty(0)])
        values = values[np.isfinite(values)] if values.dtype.kind in "bif" else values[:0]
        if len(values):
            scores[place.name] = values
    return scores


def name_failed(shard: str, failed: FailedSample) -> SampleName:
    """Return the name of a failed sample, with its position in the tar because another sample may have its key."""
    return SampleName(shard, failed.key, -1 if failed.offset is None else failed.offset)
