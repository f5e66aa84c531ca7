"""`results/report.html`: what a run gave, for a person to look at. Owns what is gathered and what is said of it.

The page is one file that needs nothing else: the pictures and Bokeh's script are in it, and it forbids itself every
other address. The same results give the same page.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from embedders.charts import draw_bars, draw_histogram, draw_points, read_script
from embedders.errors import ConfigError
from embedders.findings import LEVELS, NEAR_COPY, VectorChecks, check_vectors, find_sound, judge_run, judge_vectors
from embedders.ledger import FailedSample
from embedders.neighbours import draw_map, find_closest_pairs, find_nearest, find_outliers, scale_to_length_1
from embedders.outputs import write_whole
from embedders.parquet import read_scores
from embedders.sampling import sample_vectors
from embedders.shards import SampleName
from embedders.summary import Summary, read_accounts
from embedders.thumbnails import LARGE_SIDE, SMALL_SIDE, Thumbnails
from embedders.timings import describe_seconds, split_seconds

MAP_POINTS = 2_000
PAIRS, OUTLIERS, QUERIES, FAILURES_PER_KIND, SLOWEST = 8, 12, 6, 6, 5


@dataclass
class Run:
    """What the shards of a run left, in numbers.

    Attributes:
        summary: The totals.
        shards: Name, number of rows and failed samples, seconds and images per second of each finished shard.
        unfinished: Names of the shards without vectors.
        failed: The first few failed samples of each kind, with the names of their shards.
        provenance: The footer of the first shard's vectors.
        devices: Number of shards by what they were computed on.
    """

    summary: Summary = field(default_factory=Summary)
    shards: list[dict] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    failed: dict[str, list[tuple[str, FailedSample]]] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)


def write_report(folder: str | Path, path: str | Path) -> None:
    """Write the report of a run.

    Args:
        folder: Its output folder.
        path: The HTML file, which appears whole or not at all.

    Raises:
        ConfigError: The folder holds no run, or none of its shards is finished.
        ShardError: What a shard left is not whole.
        OutputError: The report cannot be written.
    """
    tar_paths = read_shards(Path(folder))
    run = read_run(Path(folder), list(tar_paths))
    if not run.shards:
        raise ConfigError(f"{str(folder)!r}: none of its {len(tar_paths)} shards is finished; run snakemake first")
    page = describe_run(Path(folder), run, tar_paths)
    # What comes from the tars is strangers' text: all of it is escaped, in the JSON of the charts too (`tojson`).
    templates = jinja2.Environment(loader=jinja2.PackageLoader("embedders", "."), autoescape=True)
    templates.policies["json.dumps_kwargs"] = {}  # else it sorts the keys, and Bokeh goes by their order
    with write_whole(path) as file:
        file.write(templates.get_template("report.html.jinja").render(page, script=read_script()).encode())


def read_shards(folder: Path) -> dict[str, str]:
    """Read the path of each shard of a run by name.

    Raises:
        ConfigError: The folder holds no run.
    """
    try:
        return json.loads((folder / "run_shards.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(folder)!r}: it has no run_shards.json that can be read; expected the output_dir of a run; check "
            "the path"
        ) from error


def read_run(folder: Path, shards: list[str]) -> Run:
    """Read the footers and the ledgers of a run; shards that are not finished are only named."""
    finished = [shard for shard in shards if (folder / f"embeddings/{shard}.parquet").is_file()]
    run = Run(unfinished=sorted(set(shards) - set(finished)))
    for account in read_accounts(folder, finished):
        run.provenance = run.provenance or account.output
        run.devices[account.output["embedder"]["device"]] += 1
        run.summary.add(account, account.shard)
        seconds = sum(split_seconds(account.seconds).values())
        rows, failed = account.output["rows"], len(account.failed)
        speed = rows / seconds if seconds else 0.0
        shard = {"name": account.shard, "rows": rows, "failed": failed, "seconds": seconds, "speed": speed}
        run.shards.append(shard)
        for sample in account.failed:
            named = run.failed.setdefault(sample.kind, [])
            if len(named) < FAILURES_PER_KIND:
                named.append((account.shard, sample))
    return run


def describe_run(folder: Path, run: Run, tar_paths: Mapping[str, str]) -> dict[str, Any]:
    """Gather what the page shows."""
    rows = {shard["name"]: shard["rows"] for shard in run.shards}
    everything = sample_vectors(folder / "embeddings", rows, run.provenance["dimension"])
    sampled = sorted({name.shard for name in everything.names})
    checks = check_vectors(everything.vectors)
    sample = everything.choose(find_sound(everything.vectors))
    vectors = scale_to_length_1(sample.vectors)
    near, cosines = find_nearest(vectors)
    chance = np.random.default_rng(0)
    pairs = find_closest_pairs(near, cosines, PAIRS)
    outliers = find_outliers(cosines, min(OUTLIERS, len(sample) // 8))
    queries = sorted(chance.permutation(len(sample))[:QUERIES].tolist()) if near.shape[1] else []
    notes = {row: "among the closest pairs" for one, other, _ in pairs for row in (one, other)}
    notes |= {row: "an outlier" for row, _ in outliers}
    points = sorted({*chance.permutation(len(sample))[:MAP_POINTS].tolist(), *notes})

    pictured = {*notes, *queries, *near[queries].ravel().tolist()}
    sides = {sample.names[row]: SMALL_SIDE for row in points} | {sample.names[row]: LARGE_SIDE for row in pictured}
    failed = {kind: [(name_failed(*one), one[1].message) for one in named] for kind, named in run.failed.items()}
    sides |= {wanted: LARGE_SIDE for named in failed.values() for wanted, _ in named}
    thumbnails = Thumbnails(tar_paths)
    thumbnails.read(sides)

    def show(row: int, cosine: float | None = None) -> dict[str, Any]:
        return show_picture(sample.names[row], cosine)

    def show_picture(wanted: SampleName, cosine: float | None = None, message: str = "") -> dict[str, Any]:
        picture = thumbnails.get(wanted)
        return {"key": wanted.key, "shard": wanted.shard, "picture": picture, "cosine": cosine, "message": message}

    shards = run.shards
    charts = draw_charts(shards, checks, cosines)
    if len(points) > 1:
        names = [sample.names[row] for row in points]
        charts["map"] = draw_points(
            draw_map(vectors[points]),
            [name.key for name in names],
            [name.shard for name in names],
            [notes.get(row, "") for row in points],
            [thumbnails.get(name) or "" for name in names],
        )
    scores = gather_scores(folder, sampled)
    charts |= {f"score {name}": draw_histogram(values, name) for name, values in scores.items()}
    near_copies = int((cosines[:, 0] >= NEAR_COPY).sum()) if cosines.shape[1] else 0
    findings = judge_run(run.summary, len(run.unfinished)) + judge_vectors(checks, near_copies)
    return {
        "folder": str(folder),
        "run": run,
        "findings": sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        "checks": checks,
        "is_sample": not everything.is_whole,
        "sampled_shards": len(sampled),
        "charts": charts,
        "scores": list(scores),
        "arguments": json.dumps(run.provenance["embedder"]["args"]),
        "failed": {
            kind: [show_picture(name, message=message) for name, message in named] for kind, named in failed.items()
        },
        "slowest": sorted((shard for shard in shards if shard["speed"]), key=lambda shard: shard["speed"])[:SLOWEST],
        "time": describe_time(run),
        "points": len(points),
        "pairs": [(show(one), show(other), cosine) for one, other, cosine in pairs],
        "queries": [[show(query), *map(show, near[query].tolist(), cosines[query].tolist())] for query in queries],
        "outliers": [show(row, cosine) for row, cosine in outliers],
        "lost_shards": thumbnails.lost_shards,
        "is_full": thumbnails.is_full,
    }


def draw_charts(shards: list[dict], checks: VectorChecks, cosines: np.ndarray) -> dict[str, Any]:
    """Draw the charts that need no pictures."""
    charts = {}
    if any(shard["speed"] for shard in shards):
        notes = [
            f"{shard['rows']:,} images in {shard['seconds']:.1f} s, {shard['failed']} failed" for shard in shards
        ]
        names, speeds = [shard["name"] for shard in shards], [shard["speed"] for shard in shards]
        charts["speed"] = draw_bars(names, speeds, notes, "images/s")
    if not checks.have_one_length:
        charts["lengths"] = draw_histogram(checks.lengths, "length")
    if cosines.shape[1]:
        charts["nearest"] = draw_histogram(cosines[:, 0], "cosine to the nearest neighbour")
    return charts


def describe_time(run: Run) -> dict[str, Any]:
    """Say where the time went: the parts of all the shards' time, and what the other threads did meanwhile."""
    parts = split_seconds(run.summary.seconds)
    total = sum(parts.values())
    shares = [(phrase, seconds, seconds / total) for phrase, seconds in parts.items()] if total else []
    beside = {name: seconds for name, seconds in run.summary.seconds.items() if name in ("reading", "decoding")}
    return {"total": total, "shares": shares, "beside": describe_seconds(beside)}


def gather_scores(folder: Path, shards: list[str]) -> dict[str, np.ndarray]:
    """Read the scores of some shards by the name of the score, where there are any."""
    scores = {}
    for place in sorted((folder / "scores").glob("*/")):
        paths = [path for shard in shards if (path := place / f"{shard}.parquet").is_file()]
        values = np.concatenate([read_scores(str(path)) for path in paths] or [np.empty(0)])
        if len(values) and np.issubdtype(values.dtype, np.number):
            scores[place.name] = values[np.isfinite(values)]
    return scores


def name_failed(shard: str, failed: FailedSample) -> SampleName:
    """Name a failed sample by its place in the tar, because another one may have its key."""
    return SampleName(shard, failed.key, -1 if failed.offset is None else failed.offset)
