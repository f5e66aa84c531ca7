"""The report as a person meets it: the file, the page in a real browser, and what it says of good and bad runs."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brightness import Brightness
from support.browser import find_point, list_errors, list_requests, open_browser, read_hint, read_page, set_width
from support.results import make_provenance, make_run, write_shard, write_vectors
from support.tools import MEAN_COLOR, make_image, make_shard, make_tar, run_cli
from support.workflow import run_well

from embedders import embed_shard
from embedders.errors import ConfigError
from embedders.job.locate import build_embedder
from embedders.job.score import score_file
from embedders.output.footers import describe_file
from embedders.output.near_copies import CopyCounts, write_near_copies
from embedders.output.usage import Usage
from embedders.output.writer import write_ledger
from embedders.report.page import write_report
from embedders.report.settings import shows_other_column

HOSTILE = [
    "<script>hacked=1</script>",
    '"><img src=x onerror=hacked=1>',
    "</script><svg onload=hacked=1>",
    "@{picture}{{7*7}}$(id)",
]


def embed(folder, name, members):
    tar = make_tar(folder / "data" / f"{name}.tar", members)
    outputs = [folder / f"results/{kind}/{name}.parquet" for kind in ("embeddings", "ledger")]
    embedder = build_embedder(MEAN_COLOR, {})
    embed_shard(embedder, tar, outputs[0], ledger_path=outputs[1], device="cpu", max_failed_fraction=1)
    return tar


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three shards with failures of several kinds, and with keys and messages of an enemy."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    pictures = [(f"{number:03}.jpg", make_image(number, (300, 200))) for number in range(60)]
    bad = [("cut.jpg", make_image()[:200]), ("two.jpg", make_image(1)), ("two.png", make_image(2))]
    hostile = [(f"{key}.jpg", make_image(100 + number)) for number, key in enumerate(HOSTILE)]
    hostile += [(f"bad {key}.jpg", b"no image") for key in HOSTILE]
    shards = {"a": pictures[:30], "b": pictures[30:] + bad, "c": hostile}
    tars = {name: embed(folder, name, members) for name, members in shards.items()}
    (folder / "results/run_shards.json").write_text(json.dumps(tars))
    return folder / "results"


@pytest.fixture(scope="module")
def page(run):
    done = run_cli("report", run)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return run / "report.html"


@pytest.fixture(scope="module")
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture
def shown(browser, page):
    set_width(browser, 1440)
    browser.get_log("browser"), browser.get_log("performance")
    read_page(browser, page)
    return browser


# The file


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(run, page, tmp_path):
    run_cli("report", run, "--output", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert page.stat().st_size < 8_000_000


def test_it_names_totals_failures_and_where_to_look(page):
    text = re.sub(r"<[^>]+>", " ", page.read_text().partition("<script>")[0])
    text = " ".join(text.split())
    for expected in ("Samples 70", "Embedded 64", "Failed 6", "undecodable: 5", "no_single_image: 1", "cut in b:"):
        assert expected in text
    assert "6 of 70 samples failed (8.57%)" in text


def test_a_run_whose_shards_have_gone_is_shown_by_keys(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "results")
    (moved / "run_shards.json").write_text(json.dumps({name: f"gone/{name}.tar" for name in "abc"}))
    write_report(moved, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "3 shards were moved or deleted" in html
    assert "no picture" in html
    assert "data:image" not in html.partition("<script>")[0]


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is(run, tmp_path):
    part = shutil.copytree(run, tmp_path / "results")
    (part / "embeddings/b.parquet").unlink()
    write_report(part, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "1 shards are not finished" in html
    for name in "ac":
        (part / f"embeddings/{name}.parquet").unlink()
    with pytest.raises(ConfigError, match="none of its 3 shards is finished"):
        write_report(part, tmp_path / "report.html")


def test_runs_of_no_and_of_one_image_have_a_report(tmp_path):
    (tmp_path / "data").mkdir()
    for members in ({"0.jpg": b"no image"}, {"0.jpg": make_image()}):
        tar = embed(tmp_path, "a", members)
        (tmp_path / "results/run_shards.json").write_text(json.dumps({"a": tar}))
        write_report(tmp_path / "results", tmp_path / "report.html")
        assert "Report of" in (tmp_path / "report.html").read_text()


def test_the_page_shows_the_named_column_or_the_first_with_one_vector_per_image(tmp_path):
    shapes = {"tokens": (2, 3), "first": (4,), "last": (5,)}
    make_results(tmp_path / "results", shapes)
    for column, dimension in (("", 4), ("last", 5)):
        done = run_cli("report", tmp_path / "results", *(["--column", column] if column else []))
        assert done.returncode == 0, done.stderr
        html = (tmp_path / "results/report.html").read_text()
        assert f"<dt>Dimension</dt><dd>{dimension}</dd>" in html
        assert f"this page shows &#39;{column or 'first'}&#39;; `report: {{column: NAME}}` in config.yaml" in html
        assert 'data-chart="map"' in html
    done = run_cli("report", tmp_path / "results", "--column", "tokens")
    assert done.returncode == 1
    assert "column 'tokens' has several vectors per image" in done.stderr.splitlines()[-1]


def test_a_page_names_the_column_that_it_was_asked_for(tmp_path):
    odd = """<a> & "b", it's \u00fc"""
    make_results(tmp_path / "results", {"first": (4,), odd: (5,)})
    path = tmp_path / "report.html"
    assert not shows_other_column(str(path), odd)
    for column, other in (("", odd), (odd, "")):
        write_report(tmp_path / "results", path, column)
        assert not shows_other_column(str(path), column)
        assert shows_other_column(str(path), other)
    path.write_text("<!doctype html><title>a page from before</title>")
    assert not shows_other_column(str(path), "")


def test_a_page_of_several_vectors_per_image_says_that_it_has_no_map(tmp_path):
    make_results(tmp_path / "results", {"v": (2, 3)})
    write_report(tmp_path / "results", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<dt>Dimension</dt><dd>2 x 3</dd>" in html
    assert "Every image has several vectors, 2 x 3 (v): this page shows no map, neighbours or copies of them." in html
    assert 'data-chart="map"' not in html


def make_results(folder, shapes):
    """A finished run with these columns of vectors, and its ledgers."""
    make_run(folder, {"a": 40, "b": 20}, shapes=shapes)
    for shard in ("a", "b"):
        (folder / "ledger").mkdir(exist_ok=True)
        with (folder / f"ledger/{shard}.parquet").open("wb") as file:
            write_ledger(file, [], make_provenance(), {"model": 1.0})


def test_a_folder_without_a_run_is_one_line(tmp_path):
    done = run_cli("report", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no readable run_shards.json" in done.stderr


def test_scores_are_drawn(run, tmp_path):
    scored = shutil.copytree(run, tmp_path / "results")
    for name in "ab":
        for score, kind in (("bright", float), ("is_bright", bool), ("nothing", float)):
            classifier = Brightness()
            classifier.pred_type = kind
            classifier.postprocess = lambda scores, score=score: scores if score != "nothing" else scores * np.nan
            score_file(
                scored / f"embeddings/{name}.parquet", scored / f"scores/{score}/{name}.parquet", classifier, "cpu"
            )
    write_report(scored, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert 'data-chart="score bright"' in html and 'data-chart="score is_bright"' in html
    assert 'data-chart="score nothing"' not in html


def test_what_the_shards_used_is_shown_and_what_is_unknown_too(tmp_path):
    used = {"a": Usage(30.0, 2 * 10**9, 1800.0, 450.0, 5 * 10**9), "b": Usage(5.0, 10**9, 1800.0), "c": None}
    for name, usage in used.items():
        write_shard(tmp_path, name, 2, [], usage=usage)
    (tmp_path / "run_shards.json").write_text(json.dumps({name: f"{name}.tar" for name in used}))
    write_report(tmp_path, tmp_path / "report.html")
    text = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text().partition("<script>")[0]).split())
    for expected in (
        "GPUs: 1 GPU-hours leased, 4 images per GPU-hour; the GPUs were idle for 75% of the time",
        "Images/GPU-hour 4",
        "GPUs idle 75 % of the time, in which no kernel ran; the driver did not say it for 1 shards",
        "Peak memory of a GPU 5.0 GB CPU time 35 s Peak memory of a job 2.0 GB",
        "Unknown for 1 of 3 shards, whose ledgers do not have it",
    ):
        assert expected in text


# In a run


@pytest.mark.slow
def test_a_run_ends_with_the_report_and_snakemake_can_show_it(tmp_path):
    (tmp_path / "data").mkdir()
    make_shard(tmp_path / "data/a.tar", 3)
    config = {"shards": "data/*.tar", "embedder": {"class": MEAN_COLOR}, "device": "cpu", "gpu": 0, "threads": 1}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run_well(tmp_path)
    assert "Report of results" in (tmp_path / "results/report.html").read_text()
    assert "Nothing to be done" in run_well(tmp_path, "-n")
    (tmp_path / "results/report.html").unlink()
    assert "Nothing to be done" in run_well(tmp_path, "-n", "--config", "report=False")
    planned = run_well(tmp_path, "-n")
    assert "write_report" in planned
    assert "rule embed" not in planned


# In a browser


@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_read_at_this_width_without_an_error_and_without_the_network(browser, page, width):
    set_width(browser, width)
    browser.get_log("browser"), browser.get_log("performance")
    read_page(browser, page)
    assert list_errors(browser) == []
    assert list_requests(browser) == [page.absolute().as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """return [...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right
        > innerWidth + 1 && !one.closest('.wide')).map(one => one.outerHTML.slice(0, 200))"""
    assert browser.execute_script(wide) == []


def test_the_pictures_are_there_and_have_a_text(shown):
    pictures = shown.execute_script("return [...document.images].map(one => [one.naturalWidth, one.alt])")
    assert len(pictures) > 50
    assert all(width > 0 and alt for width, alt in pictures)


@pytest.mark.parametrize("width", [390, 1440])
def test_the_map_answers_with_a_picture(browser, page, width):
    set_width(browser, width)
    read_page(browser, page)
    assert_hint(browser, "017", width < 500)


def assert_hint(browser, key, by_touch):
    from selenium.webdriver.support.ui import WebDriverWait

    x, y = find_point(browser, key)
    if by_touch:
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x - 9, "y": y})
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    hint = WebDriverWait(browser, 60).until(read_hint)
    assert key in hint["text"]
    assert hint["picture"] > 0
    return hint


def test_a_strangers_key_is_text_and_nothing_else(shown):
    shown_text = shown.execute_script("return document.body.innerText")
    for key in HOSTILE:
        assert f"bad {key}" in shown_text
    for key in HOSTILE:
        hint = assert_hint(shown, key, False)
        assert not {"SCRIPT", "SVG"} & set(hint["tags"])
        assert hint["tags"].count("IMG") == 1
    assert not shown.execute_script("return window.hacked")
    assert list_errors(shown) == []


# Vectors that no model should give


def test_broken_vectors_are_counted_and_are_no_outliers(run, tmp_path):
    provenance = make_provenance(50, describe_file(str(run / "embeddings/a.parquet")).provenance.embedder)
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    vectors[:, 4], vectors[7], vectors[8, 2] = 0.5, 0, np.nan
    samples = [{"__key__": f"key-{number}"} for number in range(50)]
    write_vectors(tmp_path / "embeddings/a.parquet", samples, vectors, provenance=provenance)
    (tmp_path / "ledger").mkdir()
    with (tmp_path / "ledger/a.parquet").open("wb") as file:
        write_ledger(file, [], provenance, {})
    (tmp_path / "run_shards.json").write_text('{"a": "gone.tar"}')
    write_report(tmp_path, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "2 of 50 vectors are zero or contain NaN or infinity" in html
    assert "1 of the 6 dimensions have the same value in every vector" in html
    assert "key-7<" not in html
    assert 'data-chart="norms"' in html


def test_the_groups_of_near_copies_are_shown_with_a_link_to_the_list(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "results")
    rows = {shard: pq.read_metadata(folder / f"embeddings/{shard}.parquet").num_rows for shard in "abc"}
    names = [("a", "000"), ("a", "001"), ("b", "030")]
    table = pa.table(
        {
            "shard": [names[0][0], names[1][0]],
            "key": [names[0][1], names[1][1]],
            "other_shard": [names[1][0], names[2][0]],
            "other_key": [names[1][1], names[2][1]],
            "cosine": [0.99, 0.98],
            "group": [0, 0],
            "keep": [False, True],
            "other_keep": [True, False],
        }
    )
    counts = CopyCounts(0.97, "first", rows, sum(rows.values()), 2, 1, 3)
    write_near_copies(folder / "near_copies.parquet", [table], counts)
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text()
    section = page[page.index('id="copies"') : page.index('id="pairs"')]
    assert '<a href="near_copies.parquet">' in section
    assert re.findall(r'alt="(\d+)"', section) == ["001", "000", "030"]
    assert "3 of 64 images are near copies (a cosine of 0.97 or more), in 1 groups and 2 pairs" in page
    assert "are near copies (a cosine of 0.98" not in page and "have a near copy" not in page

    # A list of another run, or of this one before a shard was added or the model changed, is not shown.
    for other in ({"rows": rows | {"a": 1}}, {"made_from": "another model"}):
        write_near_copies(folder / "near_copies.parquet", [table], replace(counts, **other))
        write_report(folder, folder / "report.html")
        assert 'id="copies"' not in (folder / "report.html").read_text()
