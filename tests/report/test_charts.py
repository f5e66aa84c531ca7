import base64
import gzip

import numpy as np
import pytest

from embedders.report.charts import MAX_BARS, draw_bars, draw_histogram


def find_column(drawn, name):
    """Every list of this name in what Bokeh's script gets."""
    found = []

    def walk(node):
        if isinstance(node, dict):
            if node.get("type") == "map":
                found.extend(value for key, value in node["entries"] if key == name)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(drawn)
    return found


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.5], "f"),
        np.array([1.0] * 9, "f"),
        np.array([1.0, np.nextafter(np.float32(1), 0)], "f"),
        np.array([1e6, 1e6 + 1], "f"),
        np.linspace(-1, 1, 500),
        np.array([2**60] * 3),
        np.array([True, False, True]),
    ],
)
def test_a_histogram_counts_all_the_values(values):
    (counts,) = find_column(draw_histogram(values, "cosine"), "count")
    assert np.frombuffer(gzip.decompress(base64.b64decode(counts["array"]["data"])), counts["dtype"]).sum() == len(
        values
    )


def test_of_very_many_shards_some_bars_are_drawn():
    shards = 3 * MAX_BARS
    drawn = draw_bars([str(one) for one in range(shards)], [1.0] * shards, [""] * shards, "images/s")
    (names,) = find_column(drawn, "name")
    assert len(names) == MAX_BARS
    assert (names[0], names[-1]) == ("0", str(shards - 1))
