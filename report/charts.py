"""Elements of HTML and SVG that escape their text, and charts made of them.

Colours are the page's: it styles the classes `chart`, `axis`, `grid`, `bar`, `mark` and `series-0`, `series-1`, ...
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = (
    360,
    250,
)  # of a chart, in its own units; text of 12 of them is legible where a phone shows it
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 30, 44  # margins around the plot
MARKED = 40  # points of a line, up to which each is marked and tells its value


class Markup(str):
    """Text that is markup already, and is not escaped again."""


def element(name: str, *children: str, **attributes: object) -> Markup:
    """<name attributes>children</name>; an attribute's trailing and other underscores are dropped and become dashes.

    Whatever is no Markup is escaped, in children and attributes.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    inside = "".join(
        child if isinstance(child, Markup) else html.escape(child) for child in children
    )
    return Markup(f"<{name}{pairs}>{inside}</{name}>")


def join(parts: Sequence[Markup], separator: str = "\n") -> Markup:
    """Markup after markup."""
    return Markup(separator.join(parts))


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Axis:
    """From `low` to `high`, in equal steps or, with `log`, in equal factors."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def fraction(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def linear_axis(label: str, low: float, high: float, *, snug: bool = False) -> Axis:
    """About five ticks, at multiples of 1, 2 or 5 times a power of ten; it ends at ticks or, if `snug`, at values."""
    if high == low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(low) or 1.0) / 2
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(
        factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / 5 * 0.999
    )
    first, last = (math.ceil, math.floor) if snug else (math.floor, math.ceil)
    ticks = [round(k * step, 12) for k in range(first(low / step), last(high / step) + 1)]
    return Axis(label, low, high, ticks) if snug else Axis(label, ticks[0], ticks[-1], ticks)


def log_axis(label: str, low: float, high: float) -> Axis:
    """For values above 0; ticks at 1, 2 and 5 times powers of ten or, over more than two decades, at these alone."""
    factors = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power, factor in itertools.product(powers, factors)]
    below, above = (tick for tick in ticks if tick <= low), (tick for tick in ticks if tick >= high)
    first, last = max(below), min(above)
    if first == last:
        last = first * 10
    return Axis(label, first, last, [tick for tick in ticks if first <= tick <= last], log=True)


def number(value: float) -> str:
    """A short number: 0.05, 2.4, 1300, 650k, 1.3M."""
    if abs(value) < 1e4:
        return f"{value:g}"
    return f"{value / 1e3:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"


# --- charts -----------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A named line through points (x, y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(lines: Sequence[Line], title: str, x_label: str, y_label: str) -> Markup:
    """Lines over one x axis; the y axis is logarithmic if values above 0 differ by more than a factor of five."""
    xs, ys = ([value for line in lines for value in getattr(line, axis)] for axis in "xy")
    make = log_axis if min(ys) > 0 and max(ys) > 5 * min(ys) else linear_axis
    x_axis, y_axis = (
        linear_axis(x_label, min(xs), max(xs), snug=True),
        make(y_label, min(ys), max(ys)),
    )
    body, legend_at = [], LEFT
    for index, line in enumerate(lines):
        points = [_place(x_axis, y_axis, x, y) for x, y in zip(line.x, line.y)]
        drawn = [element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))]
        if len(points) <= MARKED:
            told = (f"{line.name}: {y:.4g} at {number(x)}" for x, y in zip(line.x, line.y))
            drawn += [
                element("circle", element("title", text), cx=f"{x:.1f}", cy=f"{y:.1f}", r=3)
                for (x, y), text in zip(points, told)
            ]
        legend = [
            element("line", x1=legend_at, x2=legend_at + 22, y1=12, y2=12),
            element("text", line.name, x=legend_at + 28, y=16),
        ]
        legend_at += 44 + 7 * len(line.name)
        body.append(element("g", *drawn, *legend, class_=f"series-{index}"))
    return _chart(title, x_axis, y_axis, body)


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    mean: float,
) -> Markup:
    """Bars of counts (N,) between edges (N + 1,), and a line at the mean."""
    x_axis, y_axis = (
        linear_axis(x_label, edges[0], edges[-1], snug=True),
        linear_axis(y_label, 0, max(counts)),
    )
    body = []
    for count, low, high in zip(counts, edges, edges[1:]):
        left, top = _place(x_axis, y_axis, low, count)
        right, bottom = _place(x_axis, y_axis, high, 0)
        shape = {
            "x": f"{left:.1f}",
            "y": f"{top:.1f}",
            "width": f"{right - left:.1f}",
            "height": f"{bottom - top:.1f}",
        }
        body.append(
            element(
                "rect", element("title", f"{low:.4g} to {high:.4g}: {count}"), class_="bar", **shape
            )
        )
    x, _ = _place(x_axis, y_axis, mean, 0)
    end = "start" if x < WIDTH / 2 else "end"
    body.append(
        element(
            "line", class_="mark", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 10, y2=HEIGHT - BOTTOM
        )
    )
    body.append(element("text", f"mean {mean:.4g}", x=f"{x:.1f}", y=TOP - 15, text_anchor=end))
    return _chart(title, x_axis, y_axis, body)


def _place(x_axis: Axis, y_axis: Axis, x: float, y: float) -> tuple[float, float]:
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + width * x_axis.fraction(x), HEIGHT - BOTTOM - height * y_axis.fraction(y)


def _chart(title: str, x_axis: Axis, y_axis: Axis, body: Sequence[Markup]) -> Markup:
    """The plot between its axes; the title is for who cannot see it."""
    floor, centre = HEIGHT - BOTTOM, TOP + (HEIGHT - TOP - BOTTOM) / 2
    grid, texts = [], []
    for tick in y_axis.ticks:
        _, y = _place(x_axis, y_axis, x_axis.low, tick)
        grid.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"))
        texts.append(element("text", number(tick), x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for tick in x_axis.ticks:
        x, _ = _place(x_axis, y_axis, tick, y_axis.low)
        grid.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=floor, y2=floor + 4))
        texts.append(
            element("text", number(tick), x=f"{x:.1f}", y=floor + 17, text_anchor="middle")
        )
    texts.append(
        element(
            "text", x_axis.label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle"
        )
    )
    turned = f"translate(11 {centre:.0f}) rotate(-90)"
    texts.append(element("text", y_axis.label, transform=turned, text_anchor="middle"))
    parts = element("g", *grid, class_="grid"), *body, element("g", *texts, class_="axis")
    return element(
        "svg",
        element("title", title),
        *parts,
        class_="chart",
        role="img",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
    )
