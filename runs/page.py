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
from typing import Any

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
    checkpoints, config, training = data["checkpoints"], data["config"], None
    names = [row["name"] for each in checkpoints for row in each["results"]["measures"]]
    lines = [Line(name, each["steps"], each["values"]) for name, each in data["curves"].items()]
    if lines:
        title = f"Loss by training step: {' and '.join(line.name for line in lines)}"
        training = charts.line_chart(lines, title, "step", "loss")
    size = (*sides(config["data"]["image_size"]), config["data"]["num_channels"]) if config else ()
    fields = traverse_util.flatten_dict(config, sep=".")
    return environment.get_template("page.html").render(
        **data | {"checkpoints": [_checkpoint(each, folder) for each in checkpoints]},
        measure_names=list(dict.fromkeys(names)),
        sampler=_sampler(config["sampling"]) if config else "",
        shape="x".join(map(str, size)),
        by_step=_charts_by_step(checkpoints) if len(checkpoints) > 1 else [],
        training=training,
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


def _charts_by_step(checkpoints: Sequence[ReportData]) -> list[Chart]:
    """A chart of the finite values of each kind of measures that has any."""
    found = []
    for kind in KINDS:
        points: dict[str, list[tuple[int, float]]] = {}
        for each in sorted(checkpoints, key=lambda each: each["results"]["step"]):
            for measure in each["results"]["measures"]:
                if measure["name"].startswith(kind) and measure["value"] is not None:
                    name = measure["name"].removeprefix(f"{kind}, ")
                    points.setdefault(name, []).append((each["results"]["step"], measure["value"]))
        if points:
            lines = [Line(_short(name), *zip(*each)) for name, each in points.items()]
            title = f"{kind} by training step: {'; '.join(points)}"
            found.append(charts.line_chart(lines, title, "step", kind))
    return found


def _short(name: str) -> str:
    """A measure's name without the details in parentheses."""
    return name.split(" (")[0]


def _checkpoint(checkpoint: ReportData, folder: Path) -> ReportData:
    """What the section of one checkpoint shows, in addition to its data."""
    results, chart = checkpoint["results"], None
    if "bpd" in results:
        found, number = results["bpd"], checkpoint["number"]
        title = f"Checkpoint {number}: histogram of the bits/dim of {found['images']} images"
        chart = charts.histogram(**found["histogram"], mean=found["mean"], title=title)
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


def _picture(path: Path) -> dict[str, str]:
    """The kind of a PNG file (its stem), its data URL, and why it has none, or ''."""
    content = io.BytesIO()
    try:
        check_regular(path)
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            picture.save(content, "png")
    except Exception as error:  # Decoders raise many exception types for damaged files.
        problem = f"{path.name} is missing or damaged: {brief(error)}."
        return {"kind": path.stem, "url": "", "problem": problem}
    encoded = base64.b64encode(content.getbuffer()).decode()
    return {"kind": path.stem, "url": f"data:image/png;base64,{encoded}", "problem": ""}
