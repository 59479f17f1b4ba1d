"""The charts of a report: what they show, and how they fit into a page."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from runs import charts

SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines, title="t"):
    return charts.line_chart(lines, title, "x", "y").svg


def points(path):
    """The (x, y) of an SVG path of straight lines."""
    return np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path), float)


def texts(svg):
    return {text.text for text in ET.fromstring(svg).iter(f"{SVG}text")}


def drawn(svg, style):
    """The points of the lines and bars with this inline style, without those of the legend."""
    paths = [path for path in ET.fromstring(svg).iter(f"{SVG}path") if path.get("clip-path")]
    return [points(path.get("d")) for path in paths if style in path.get("style", "")]


def test_line_charts_show_their_numbers():
    """Points lie where they should, text is escaped and not parsed, and colors are the page's."""
    before = dict(matplotlib.rcParams)
    first = charts.Line("a<b $c$", [0, 5000, 10_000], [0, 5, 10])
    svg = chart(first, charts.Line("d", [0, 1], [10, 0]))
    (first,) = drawn(svg, "stroke: var(--series-0)")
    (second,) = drawn(svg, "stroke: var(--series-1)")
    assert first[1] == pytest.approx(np.mean([first[0], first[2]], 0), abs=0.1)
    assert second[:, 1] == pytest.approx([first[2, 1], first[0, 1]])
    assert first[0, 1] > first[2, 1]  # The y of an SVG increases downwards.
    assert {"a<b $c$", "d", "x", "y", "0", "10k", "10"} <= texts(svg)
    assert not re.search(r"#\w{6}[;\"]|metadata|<\?xml", svg)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([2.0, 9.0], {"2", "4", "6", "8"}),
        ([0.07, 0.5], {"0.1", "0.2", "0.5"}),
        ([0.1, 4.0], {"0.1", "0.2", "0.5", "1", "2"}),
        ([0.002, 400.0], {"0.01", "1", "100"}),
        ([0.0, 400.0], {"0", "100", "400"}),
        ([-1.0, 400.0], {"0", "100", "400"}),
        ([10_000.0, 10_002.0], {"10000.5", "10002.0"}),
        ([3.0, 3.0], {"3.00"}),
    ],
)
def test_labels_of_the_y_axis(values, labels):
    """Logarithmic from a ratio of five on, and always plain numbers."""
    found = texts(chart(charts.Line("a", [1, 2], values)))
    assert labels <= found
    assert all(re.fullmatch(r"\u2212?[\d.]+", text) for text in found - {"a", "x", "y"})


def test_histograms_show_their_numbers():
    svg = charts.histogram([1, 4, 2], [0, 1, 2, 3], 1.5, "t", "x").svg
    bars = drawn(svg, "fill: var(--series-0)")
    heights = [np.ptp(bar[:, 1]) for bar in bars]
    assert heights == pytest.approx(heights[0] * np.array([1, 4, 2]), abs=0.2)
    (mean,) = drawn(svg, "stroke: var(--series-1)")
    assert mean[:, 0] == pytest.approx(bars[1][:, 0].min() + np.ptp(bars[1][:, 0]) / 2, abs=0.1)
    assert {"mean 1.5", "x", "images"} <= texts(svg)


def test_charts_are_reproducible_and_have_ids_of_their_own():
    line = charts.Line("a", [1, 2], [3, 4])
    first, again, other = (chart(line, title=title) for title in "aab")
    assert first == again
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
