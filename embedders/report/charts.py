"""The charts of a report, as JSON that Bokeh's script draws in a browser. The only user of bokeh.

All text is in a grey that is readable on white and on black, because a chart does not know the page's background.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from bokeh.embed import json_item
from bokeh.embed.standalone import StandaloneEmbedJson
from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d, HoverTool
from bokeh.plotting import figure
from bokeh.resources import Resources

BLUE, ORANGE, GREY = "#4a90d9", "#e0782f", "#808080"
# More bars than pixels cannot be told apart.
MAX_BARS = 1000
BINS = 40
LEAST_RANGE = 1e-4

# Bokeh inserts names and messages as text, never as HTML.
_MAP_HINT = """
<div style="width: 180px; font: 12px system-ui, sans-serif; color: #222; overflow-wrap: anywhere">
  <img src="@picture" alt="" style="display: block; max-width: 160px; width: 100%; margin: 0 auto 4px">
  <b>@key</b><br>@shard<br>@note
</div>
"""


def read_script() -> str:
    """Return Bokeh's JavaScript for the page."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)


def draw_points(
    positions: np.ndarray, keys: Sequence[str], shards: Sequence[str], notes: Sequence[str], pictures: Sequence[str]
) -> StandaloneEmbedJson:
    """Draw the map: a point for each row, with its picture on hover; rows with a note are highlighted."""
    chart = _make_figure(520, tools="pan,box_zoom,wheel_zoom,reset", toolbar_location="above")
    # On a touch screen, dragging over the map scrolls the page until a tool is chosen.
    chart.toolbar.active_drag = None
    chart.toolbar.active_scroll = None
    chart.toolbar.logo = None
    chart.axis.visible = chart.grid.visible = False
    is_noted = np.array([bool(note) for note in notes], bool)
    for chosen, color, size, name in ((~is_noted, BLUE, 7, "others"), (is_noted, ORANGE, 10, "noted")):
        rows = np.flatnonzero(chosen)
        columns: dict[str, Any] = {"x": positions[rows, 0].round(3), "y": positions[rows, 1].round(3)}
        for column, values in (("key", keys), ("shard", shards), ("note", notes), ("picture", pictures)):
            columns[column] = [values[row] for row in rows.tolist()]
        source = ColumnDataSource(columns)
        chart.scatter("x", "y", size=size, color=color, alpha=0.6, line_color=None, source=source, name=name)
    _add_hint(chart, _MAP_HINT)
    return json_item(chart)


def draw_bars(names: Sequence[str], values: Sequence[float], notes: Sequence[str], unit: str) -> StandaloneEmbedJson:
    """Draw a bar for each shard in order, or for evenly spaced ones if there are very many."""
    rows = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_BARS)).round().astype(int))
    source = ColumnDataSource(
        {
            "x": rows + 1,
            "value": [values[row] for row in rows],
            "name": [names[row] for row in rows],
            "note": [notes[row] for row in rows],
        }
    )
    chart = _make_figure(220, x_axis_label="shard, in order", y_axis_label=unit)
    width = 0.8 * max(1, len(names) / max(1, len(rows)))
    chart.vbar("x", top="value", width=width, color=BLUE, line_color=None, source=source)
    chart.xaxis.ticker = BasicTicker(min_interval=1)
    chart.y_range = DataRange1d(start=0)
    _add_hint(chart, [("shard", "@name"), (unit, "@value{0,0.0}"), ("", "@note")])
    return json_item(chart)


def draw_histogram(values: np.ndarray, label: str) -> StandaloneEmbedJson:
    """Draw a histogram of at least one value."""
    low, high = float(values.min()), float(values.max())
    least = max(LEAST_RANGE, 1e-12 * abs(high))  # numpy rejects bins of zero width, also those that rounding makes so
    pad = 0.0 if high - low > least else least
    bins = min(BINS, max(5, math.isqrt(len(values))))
    counts, edges = np.histogram(values.astype(np.float64), bins, (low - pad, high + pad))
    source = ColumnDataSource({"count": counts, "left": edges[:-1], "right": edges[1:]})
    chart = _make_figure(200, x_axis_label=label, y_axis_label="vectors")
    chart.quad(left="left", right="right", bottom=0, top="count", source=source, color=BLUE, line_color=None)
    chart.y_range = DataRange1d(start=0)
    _add_hint(chart, [("from", "@left{0.000}"), ("to", "@right{0.000}"), ("vectors", "@count")])
    return json_item(chart)


def _make_figure(
    height: int, tools: str = "", toolbar_location: Literal["above"] | None = None, **options: Any
) -> figure:
    chart = figure(
        height=height, sizing_mode="stretch_width", tools=tools, toolbar_location=toolbar_location, **options
    )
    chart.background_fill_alpha = chart.border_fill_alpha = 0
    chart.outline_line_color = None
    chart.grid.grid_line_color, chart.grid.grid_line_alpha = GREY, 0.25
    for part in ("axis_label_text_color", "major_label_text_color", "axis_line_color", "major_tick_line_color"):
        setattr(chart.axis, part, GREY)
    chart.axis.minor_tick_line_color = None
    chart.axis.axis_label_text_font = chart.axis.major_label_text_font = "system-ui, sans-serif"
    chart.axis.axis_label_text_font_style = "normal"
    return chart


def _add_hint(chart: figure, hint: Any) -> None:
    # Shows at most three points under the pointer. `visible=False` hides the button of the tool, which nobody needs.
    chart.add_tools(HoverTool(tooltips=hint, visible=False, attachment="horizontal", limit=3))
