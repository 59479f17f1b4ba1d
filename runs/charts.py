"""Charts as SVG elements for an HTML page, drawn by Matplotlib.

Colors are CSS variables of the page (see page.css), so that a chart follows its light or dark
color scheme. Text stays text, in the font of the page. The same data always give the same markup.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

WIDTH, HEIGHT = 360, 250  # units of the SVG; one is a pixel on a narrow phone
MAX_MARKED = 40  # points of a line that are marked; longer lines have no marks
WHOLE_NUMBERS: dict[str, Any] = {"integer": True, "steps": [1, 2, 2.5, 5, 10]}  # of an axis
LOG_RATIO = 5  # of the largest to the smallest value, above which the y axis is logarithmic

# Matplotlib needs a color for each CSS variable; these are replaced in the finished SVG.
TEXT, SOFT, LINE, CARD = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808")
DASHES = ("-", "--", "-.", ":")
VARIABLES = {TEXT: "--text", SOFT: "--soft", LINE: "--line", CARD: "--card"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES)
}
SETTINGS: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
}


class Chart(NamedTuple):
    """An <svg> element, and its title, which must be unique in the page."""

    svg: Markup
    title: str


class Line(NamedTuple):
    """A named line through points (x, y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(lines: Sequence[Line], title: str, x_label: str, y_label: str) -> Chart:
    """Lines over one x axis of steps; the y axis is logarithmic above LOG_RATIO."""

    def draw(axes: Axes) -> None:
        for line, color, dashes in zip(lines, itertools.cycle(SERIES), itertools.cycle(DASHES)):
            style: dict[str, Any] = {"color": color, "linestyle": dashes, "label": line.name}
            marker = "o" if len(line.x) <= MAX_MARKED else None
            axes.plot(line.x, line.y, marker=marker, linewidth=2, markersize=5, **style)
        axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", **WHOLE_NUMBERS))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.ticklabel_format(axis="y", style="plain")
        values = np.concatenate([line.y for line in lines])
        ratio = values.max() / values.min() if values.min() > 0 else 0
        if ratio > LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))

    return _chart(draw, title, x_label, y_label)


def histogram(counts: Sequence[int], edges: Sequence[float], mean: float, title: str) -> Chart:
    """Bars of the numbers of images (N,) between edges (N + 1,) in bits/dim, and their mean."""

    def draw(axes: Axes) -> None:
        bars = {"color": SERIES[0], "edgecolor": CARD, "linewidth": 0.75}
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", **bars)
        axes.axvline(mean, color=SERIES[1], linestyle="--", linewidth=2, label=f"mean {mean:.4g}")
        axes.margins(x=0)
        axes.ticklabel_format(style="plain")
        axes.yaxis.set_major_locator(ticker.MaxNLocator("auto", **WHOLE_NUMBERS))

    return _chart(draw, title, "bits/dim", "images")


def _chart(draw: Callable[[Axes], None], title: str, x_label: str, y_label: str) -> Chart:
    file = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):  # Ids are unique in the page.
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # HTML has no XML declaration.
    svg = re.sub('<g id="[^"]*"', "<g", svg)  # Names of groups are the same in all charts.
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Chart(Markup(svg), title)
