"""Charts as SVG elements for an HTML page, drawn by Matplotlib.

Colours are CSS variables of the page (see style.css), so that a chart follows its light or dark
colour scheme. Text stays text, in the font of the page. The same data always give the same markup.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)
from matplotlib.typing import RcKeyType

WIDTH, HEIGHT = 360, 250  # units of the SVG; one is a pixel on a narrow phone
FONT_SIZE = 12  # of these units
MAX_MARKED = 40  # points of a line that are marked; longer lines have no marks
LOG_RATIO = 5  # of the largest to the smallest value, above which the y axis is logarithmic

# Matplotlib needs a colour for each CSS variable; these are replaced in the finished SVG.
TEXT, SOFT, LINE, CARD = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808")
DASHES = ("-", "--", "-.", ":")
VARIABLES = {TEXT: "--text", SOFT: "--soft", LINE: "--line", CARD: "--card"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
SETTINGS: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
}


class Line(NamedTuple):
    """A named line through points (x, y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line], *, chart_id: str, title: str, x_label: str, y_label: str
) -> Markup:
    """Lines over one x axis of steps.

    The y axis is logarithmic if all values are positive and differ by more than a factor of five.
    `chart_id` must be unique in the page; `title` is the text alternative.
    """
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": chart_id}):
        figure, axes = _new_figure(x_label, y_label)
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                label=line.name,
                color=SERIES[index % len(SERIES)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=2,
                marker="o" if len(line.x) <= MAX_MARKED else None,
                markersize=5,
            )
        _integer_ticks(axes.xaxis)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _scale_y(axes, np.concatenate([line.y for line in lines]))
        figure.legend(loc="outside upper left", ncols=2)
        return _svg(figure, title)


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    mean: float,
    *,
    chart_id: str,
    title: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Bars of counts (N,) between edges (N + 1,), and a line at the mean.

    `chart_id` must be unique in the page; `title` is the text alternative.
    """
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": chart_id}):
        figure, axes = _new_figure(x_label, y_label)
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges),
            align="edge",
            color=SERIES[0],
            edgecolor=CARD,
            linewidth=0.75,
        )
        axes.axvline(mean, color=SERIES[1], linestyle="--", linewidth=2, label=f"mean {mean:.4g}")
        axes.margins(x=0)
        _integer_ticks(axes.yaxis)
        figure.legend(loc="outside upper left")
        return _svg(figure, title)


def _new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    axes.ticklabel_format(style="plain", useOffset=False)
    return figure, axes


def _integer_ticks(axis: Axis) -> None:
    """Place the ticks of a linear axis at integers."""
    locator = axis.get_major_locator()
    if isinstance(locator, MaxNLocator):  # The default of linear axes.
        locator.set_params(integer=True)


def _scale_y(axes: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic if the values suggest it."""
    ratio = values.max() / values.min() if values.min() > 0 else 0
    if ratio <= LOG_RATIO:
        return
    if ratio < 10:
        multiples = (1, 2, 3, 5, 7)
    elif ratio < 100:
        multiples = (1, 2, 5)
    else:
        multiples = (1,)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=multiples))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element to embed in HTML.

    The ids that are referenced within it are hashes with the salt `svg.hashsalt`, and so are unique
    in a page of several charts. Those of groups are not, and are removed.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = _local_name(element.tag)
        element.attrib = {_local_name(name): value for name, value in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)
        if "style" in element.attrib:
            element.attrib["style"] = _page_style(element.attrib["style"])
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):  # style.css has the rules of the latter.
                parent.remove(child)
    for name in ("width", "height"):
        del root.attrib[name]
    root.attrib.update({"class": "chart", "role": "img"})
    text_alternative = ET.Element("title")
    text_alternative.text = title
    root.insert(0, text_alternative)
    return Markup(ET.tostring(root, encoding="unicode"))


def _page_style(style: str) -> str:
    """An inline style with the page's colours and font instead of Matplotlib's."""
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return re.sub("font-family: [^;]*;", "", style)


def _local_name(name: str) -> str:
    """The name without its XML namespace, which HTML does not use."""
    return name.rpartition("}")[2]
