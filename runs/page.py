"""The page of a report: one HTML file that contains its style, pictures and charts, and no scripts.

The layout and most texts are in page.html; this module prepares what the template shows.
Jinja2 escapes all text, whatever a config or a data set contains.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from flax import traverse_util
from PIL import Image

from errors import brief
from readers.files import check_regular
from readers.image_sizes import sides
from runs import charts
from runs.charts import Chart, Line

ReportData = dict[str, Any]

KINDS = ("bits/dim", "FID", "FD")  # Measures whose names begin so are highlighted and plotted.
MAX_SIDE = 1600  # pixels; larger pictures are embedded at this size


class Picture(NamedTuple):
    """The kind of a picture (the stem of its file), its data URL, and why it has none, or ''."""

    kind: str
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
    names = dict.fromkeys(row["name"] for each in checkpoints for row in _measures(each))
    fields = traverse_util.flatten_dict(config, sep=".")
    return environment.get_template("page.html").render(
        **data | {"checkpoints": [_checkpoint(each, folder) for each in checkpoints]},
        measure_names=list(names),
        sampler=_sampler(config["sampling"]) if config else "",
        shape=_shape(config["data"]) if config else "",
        by_step=_charts_by_step(checkpoints) if len(checkpoints) > 1 else [],
        training=_training(data["curves"]),
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


def _shape(data: ReportData) -> str:
    return "x".join(map(str, (*sides(data["image_size"]), data["num_channels"])))


def _sampler(sampling: ReportData) -> str:
    if sampling["method"] == "pc":
        corrector = "no" if sampling["corrector"] == "none" else sampling["corrector"]
        return f"{sampling['predictor']}, {corrector} corrector"
    if sampling["method"] == "solver":
        return f"{sampling.get('solver')}, {sampling.get('num_steps')} steps"
    return sampling["method"]


def _measures(checkpoint: ReportData) -> list[ReportData]:
    return checkpoint["results"]["measures"]


def _short_name(name: str) -> str:
    """A measure's name without the details in parentheses."""
    return name.split(" (")[0]


# --- charts ---


def _charts_by_step(checkpoints: Sequence[ReportData]) -> list[Chart]:
    """A chart of the finite values of each kind of measures that has any."""
    found = []
    for kind in KINDS:
        points: dict[str, list[tuple[int, float]]] = {}
        for each in sorted(checkpoints, key=lambda each: each["results"]["step"]):
            for measure in _measures(each):
                if measure["name"].startswith(kind) and measure["value"] is not None:
                    name = measure["name"].removeprefix(f"{kind}, ")
                    points.setdefault(name, []).append((each["results"]["step"], measure["value"]))
        if points:
            lines = [Line(_short_name(name), *zip(*each)) for name, each in points.items()]
            title = f"{kind} by training step: {'; '.join(points)}"
            found.append(charts.line_chart(lines, title, "step", kind))
    return found


def _training(curves: ReportData) -> Chart | None:
    """The chart of the losses; None without any."""
    lines = [Line(name, each["steps"], each["values"]) for name, each in curves.items()]
    if not lines:
        return None
    title = f"Loss by training step: {' and '.join(line.name for line in lines)}"
    return charts.line_chart(lines, title, "step", "loss")


# --- the section of a checkpoint ---


def _checkpoint(checkpoint: ReportData, folder: Path) -> ReportData:
    """What the section of one checkpoint shows, in addition to its data."""
    histogram, chart = checkpoint["bpd_histogram"], None
    if histogram is not None:
        count, number = sum(histogram["counts"]), checkpoint["number"]
        title = f"Checkpoint {number}: histogram of the bits/dim of {count} images"
        chart = charts.histogram(**histogram, title=title, x_label="bits/dim")
    return checkpoint | {
        "by_name": {measure["name"]: measure for measure in _measures(checkpoint)},
        "highlights": _highlights(checkpoint),
        "pictures": [_picture(folder / name) for name in checkpoint["pictures"]],
        "chart": chart,
    }


def _highlights(checkpoint: ReportData) -> list[tuple[str, str]]:
    """Names and values shown in large type: the first measure of each kind, NFE and speed."""
    shown = []
    for kind in KINDS:
        found = [each for each in _measures(checkpoint) if each["name"].startswith(kind)]
        shown += [(_short_name(each["name"]), plus_minus(each)) for each in found[:1]]
    sampling = checkpoint["sampling"]
    if sampling is not None:
        nfe = sampling["nfe"]
        variation = f" ({nfe['least']} to {nfe['most']})" if nfe["least"] != nfe["most"] else ""
        shown.append(("NFE per image", f"{nfe['mean']:.0f}{variation}"))
        label = "images/s, with compilation" if sampling["compilation_included"] else "images/s"
        shown.append((label, f"{sampling['images_per_second']:.3g}"))
    return shown


def _picture(path: Path) -> Picture:
    """The picture of a PNG file, at most of MAX_SIDE."""
    content = io.BytesIO()
    try:
        check_regular(path)
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            picture.save(content, "png")
    except Exception as error:  # Decoders raise many exception types for damaged files.
        return Picture(path.stem, "", f"{path.name} is missing or damaged: {brief(error)}.")
    encoded = base64.b64encode(content.getbuffer()).decode()
    return Picture(path.stem, f"data:image/png;base64,{encoded}")
