"""The page of a report: one HTML file that contains its style, pictures and charts, and no scripts.

The layout and most texts are in page.html; this module prepares what the template shows.
Jinja2 escapes all text, whatever a config or a data set contains.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from flax import traverse_util
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from errors import brief
from readers.files import check_regular
from readers.image_sizes import sides

ReportData = dict[str, Any]

KINDS = ("bits/dim", "FID", "FD")  # Measures whose names begin so are highlighted and plotted.
MAX_SIDE = 1600  # pixels; larger pictures are embedded at this size
MAX_MARKED = 40  # points of a line that are marked; longer lines have no marks
LOG_RATIO = 5  # of the largest to the smallest value, above which the y axis is logarithmic
WHOLE_NUMBERS: dict[str, Any] = {"integer": True, "steps": [1, 2, 2.5, 5, 10]}  # of an axis
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 12}
SETTINGS |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


class Picture(NamedTuple):
    """A picture of a page: its title, its data URL, and why it has none, or ''."""

    title: str
    url: str
    problem: str = ""


def render(data: ReportData, folder: Path) -> str:
    """Return the HTML of what `report.gather` returned for `folder`, whose pictures it reads."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plus_minus"] = plus_minus
    checkpoints, config = data["checkpoints"], data["config"]
    names = [row["name"] for each in checkpoints for row in each["results"]["measures"]]
    curves = {name: (each["steps"], each["values"]) for name, each in data["curves"].items()}
    title = f"Loss by training step: {' and '.join(curves)}"
    size = (*sides(config["data"]["image_size"]), config["data"]["num_channels"]) if config else ()
    fields = traverse_util.flatten_dict(config, sep=".")
    return environment.get_template("page.html").render(
        **data | {"checkpoints": [_checkpoint(each, folder) for each in checkpoints]},
        measure_names=list(dict.fromkeys(names)),
        sampler=_sampler(config["sampling"]) if config else "",
        shape="x".join(map(str, size)),
        by_step=_charts_by_step(checkpoints) if len(checkpoints) > 1 else [],
        training=line_chart(curves, title, "loss") if curves else None,
        package_names=list(dict.fromkeys(name for each in data["environments"] for name in each)),
        fields=[(name, json.dumps(value)) for name, value in sorted(fields.items())],
    )


def plus_minus(measure: ReportData | None) -> str:
    """A measure's value with its standard error, both to two digits of the latter."""
    if measure is None or measure["value"] is None:
        return "-"
    value, stderr = measure["value"], measure["stderr"]
    if not stderr:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def _sampler(sampling: ReportData) -> str:
    if sampling["method"] == "pc":
        corrector = "no" if sampling["corrector"] == "none" else sampling["corrector"]
        return f"{sampling['predictor']}, {corrector} corrector"
    if sampling["method"] == "solver":
        return f"{sampling.get('solver')}, {sampling.get('num_steps')} steps"
    return sampling["method"]


def _short(name: str) -> str:
    """A measure's name without the details in parentheses."""
    return name.split(" (")[0]


def _checkpoint(checkpoint: ReportData, folder: Path) -> ReportData:
    """What the section of one checkpoint shows, in addition to its data."""
    results, chart = checkpoint["results"], None
    if "bpd" in results:
        found = results["bpd"]
        title = (
            f"Checkpoint {checkpoint['number']}: histogram of the bits/dim of {found['images']} "
            "images"
        )
        chart = histogram(**found["histogram"], mean=found["mean"], title=title)
    measures, shown = results["measures"], []
    for kind in KINDS:
        first = [each for each in measures if each["name"].startswith(kind)][:1]
        shown += [(_short(each["name"]), plus_minus(each)) for each in first]
    if "samples" in results:
        samples = results["samples"]
        low, high = samples["nfe_range"]
        variation = f" ({low} to {high})" if low != high else ""
        shown.append(("NFE per image", f"{samples['nfe']:.0f}{variation}"))
        label = "images/s, with compilation" if samples["compilation_included"] else "images/s"
        shown.append((label, f"{samples['images_per_second']:.3g}"))
    return checkpoint | {
        "by_name": {measure["name"]: measure for measure in measures},
        "highlights": shown,
        "pictures": [_picture(folder / name) for name in checkpoint["pictures"]],
        "chart": chart,
    }


def _picture(path: Path) -> Picture:
    """A PNG file, whose stem is the title."""
    content = io.BytesIO()
    try:
        check_regular(path)
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            picture.save(content, "png")
    except Exception as error:  # Decoders raise many exception types for damaged files.
        return Picture(path.stem, "", f"{path.name} is missing or damaged: {brief(error)}.")
    return Picture(path.stem, _url("png", content.getvalue()))


def _url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# --- charts ---------------------------------------------------------------------------------------


def _charts_by_step(checkpoints: Sequence[ReportData]) -> list[Picture]:
    """A chart of the finite values of each kind of measures that has any."""
    found = []
    for kind in KINDS:
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for each in sorted(checkpoints, key=lambda each: each["results"]["step"]):
            for measure in each["results"]["measures"]:
                if measure["name"].startswith(kind) and measure["value"] is not None:
                    x, y = lines.setdefault(measure["name"].removeprefix(f"{kind}, "), ([], []))
                    x.append(each["results"]["step"])
                    y.append(measure["value"])
        if lines:
            title = f"{kind} by training step: {'; '.join(lines)}"
            found.append(line_chart(lines, title, kind))
    return found


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, y_label: str
) -> Picture:
    """Lines by training step (x, y); the y axis is logarithmic above LOG_RATIO."""

    def draw(axes: Axes) -> None:
        for (name, (x, y)), dashes in zip(lines.items(), itertools.cycle(("-", "--", "-.", ":"))):
            marker = "o" if len(x) <= MAX_MARKED else None
            axes.plot(x, y, dashes, marker=marker, linewidth=2, markersize=5, label=_short(name))
        axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", **WHOLE_NUMBERS))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        values = np.concatenate([y for _, y in lines.values()])
        ratio = values.max() / values.min() if values.min() > 0 else 0
        if ratio > LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))

    return _chart(draw, title, "step", y_label)


def histogram(counts: Sequence[int], edges: Sequence[float], mean: float, title: str) -> Picture:
    """Bars of the numbers of images (N,) between edges (N + 1,) in bits/dim, and their mean."""

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", edgecolor="w")
        axes.axvline(mean, color="C1", linestyle="--", linewidth=2, label=f"mean {mean:.4g}")
        axes.margins(x=0)
        axes.ticklabel_format(style="plain", useOffset=False)
        axes.yaxis.set_major_locator(ticker.MaxNLocator("auto", **WHOLE_NUMBERS))

    return _chart(draw, title, "bits/dim", "images")


def _chart(draw: Callable[[Axes], None], title: str, x_label: str, y_label: str) -> Picture:
    """An SVG by Matplotlib; the same data always give the same one."""
    file = io.BytesIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": "report"}):
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Picture(title, _url("svg+xml", file.getvalue()))
