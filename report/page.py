"""The page of a report: one HTML file that contains its style, pictures and charts, and no scripts.

The layout is in template.html; this module prepares what the template shows. Jinja2 escapes all
text, whatever a config or a data set contains.
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
from markupsafe import Markup
from PIL import Image

from errors import brief
from readers.files import check_regular
from readers.image_sizes import sides
from report import charts

ReportData = dict[str, Any]

KINDS = ("bits/dim", "FID", "FD")  # Measures whose names begin so are highlighted and plotted.
MAX_SIDE = 1600  # pixels; larger pictures are embedded at this size
TITLES = {"samples": "Samples", "real": "Held-out images", "trajectory": "Trajectories"}
ALTERNATIVES = {  # texts for pictures, by file name
    "samples": "Grid of generated images",
    "real": "Grid of images of the data set",
    "trajectory": "Rows of images that turn from noise into samples",
}


class Figure(NamedTuple):
    """A chart or a picture (a data URL with its text alternative), its caption, and its title.

    Chart and picture are None for a picture that cannot be shown, as the caption then states.
    """

    caption: str
    chart: Markup | None = None
    picture: str | None = None
    alternative: str = ""
    title: str = ""


def render(data: ReportData, folder: Path) -> str:
    """Return the HTML of what `data.gather` returned for `folder`, whose pictures it reads."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plus_minus"] = plus_minus
    fields = traverse_util.flatten_dict(data["config"], sep=".")
    return environment.get_template("template.html").render(
        title=f"Evaluation of {_subject(data['config'])}",
        facts=_facts(data),
        overview=_overview(data["checkpoints"]),
        checkpoints=[_checkpoint(checkpoint, folder) for checkpoint in data["checkpoints"]],
        training=_training(data["curves"]),
        environments=data["environments"],
        package_names=list(dict.fromkeys(name for each in data["environments"] for name in each)),
        fields=[(name, json.dumps(value)) for name, value in sorted(fields.items())],
    )


def plus_minus(measure: ReportData) -> str:
    """A measure's value with its standard error, both to two digits of the latter."""
    value, stderr = measure["value"], measure["stderr"]
    if value is None:
        return "-"
    if not stderr:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def _subject(config: ReportData) -> str:
    """The network, SDE and data set."""
    if not config:
        return "an experiment without a config"
    network, sde = config["model"]["name"], config["training"]["sde"]
    return f"{network} with {sde} on {config['data']['dataset']}"


def _facts(data: ReportData) -> list[str]:
    """The sentences under the title."""
    config = data["config"]
    sentences = [f"Folder {data['workdir']}/{data['name']}."]
    if config:
        height_width, channels = sides(config["data"]["image_size"]), config["data"]["num_channels"]
        sentences.append(f"Images of {'x'.join(map(str, (*height_width, channels)))}.")
        sentences.append(f"Sampler: {_sampler(config['sampling'])}.")
    for name in data["unfinished"]:
        sentences.append(f"{name} is unfinished and not shown.")
    return sentences


def _sampler(sampling: ReportData) -> str:
    if sampling["method"] == "pc":
        corrector = "no" if sampling["corrector"] == "none" else sampling["corrector"]
        return f"{sampling['predictor']}, {corrector} corrector"
    if sampling["method"] == "solver":
        return f"{sampling.get('solver')}, {sampling.get('num_steps')} steps"
    return sampling["method"]


def _overview(checkpoints: Sequence[ReportData]) -> ReportData | None:
    """Table and charts of the measures of all checkpoints; None if there is only one."""
    if len(checkpoints) == 1:
        return None
    names = list(dict.fromkeys(m["name"] for each in checkpoints for m in each["measures"]))
    rows = []
    for each in checkpoints:
        by_name = {measure["name"]: measure for measure in each["measures"]}
        measures = [by_name.get(name) for name in names]
        rows.append((each["number"], each["results"]["step"], measures))
    figures = []
    for index, kind in enumerate(KINDS):
        group = [name for name in names if name.startswith(kind)]
        if group:
            figures.append(_by_step(checkpoints, kind, group, f"overview-{index}"))
    return {"names": names, "rows": rows, "figures": [each for each in figures if each]}


def _by_step(
    checkpoints: Sequence[ReportData], kind: str, names: Sequence[str], chart_id: str
) -> Figure | None:
    """A chart of measures of one kind; None if no value is finite."""
    lines = []
    for name in names:
        points = []
        for each in checkpoints:
            for measure in each["measures"]:
                if measure["name"] == name and measure["value"] is not None:
                    points.append((each["results"]["step"], measure["value"]))
        if points:
            label = _short_name(name).removeprefix(f"{kind}, ")
            lines.append(charts.Line(label, *zip(*sorted(points))))
    if not lines:
        return None
    shown = "; ".join(name.removeprefix(f"{kind}, ") for name in names)
    title = f"{kind} by training step: {shown}"
    chart = charts.line_chart(lines, chart_id=chart_id, title=title, x_label="step", y_label=kind)
    return Figure(f"{title}.", chart)


def _checkpoint(checkpoint: ReportData, folder: Path) -> ReportData:
    """What the section of one checkpoint shows."""
    figures = [_picture(folder / name, checkpoint) for name in checkpoint["pictures"]]
    found = checkpoint["bpd_histogram"]
    if found is not None:
        title = f"Histogram of the bits/dim of {sum(found['counts'])} images"
        chart = charts.histogram(
            **found,
            chart_id=f"histogram-{checkpoint['number']}",
            title=title,
            x_label="bits/dim",
            y_label="images",
        )
        figures.append(Figure(f"{title}.", chart))
    return {
        "number": checkpoint["number"],
        "step": checkpoint["results"]["step"],
        "highlights": _highlights(checkpoint),
        "figures": figures,
        "measures": checkpoint["measures"],
    }


def _highlights(checkpoint: ReportData) -> list[tuple[str, str]]:
    """Names and values shown in large type: the first measure of each kind, NFE and speed."""
    shown = []
    for kind in KINDS:
        found = [each for each in checkpoint["measures"] if each["name"].startswith(kind)]
        if found:
            shown.append((_short_name(found[0]["name"]), plus_minus(found[0])))
    sampling = checkpoint["sampling"]
    if sampling is None:
        return shown
    nfe = sampling["nfe"]
    count = f"{nfe['mean']:.0f}"
    if nfe["least"] != nfe["most"]:
        count += f" ({nfe['least']} to {nfe['most']})"
    shown.append(("NFE per image", count))
    speed, compiled = sampling["images_per_second"], sampling["compilation_included"]
    label = "images/s, with compilation" if compiled else "images/s"
    shown.append((label, "not measured" if speed is None else f"{speed:.3g}"))
    return shown


def _short_name(name: str) -> str:
    """A measure's name without the details in parentheses."""
    return name.split(" (")[0]


def _picture(path: Path, checkpoint: ReportData) -> Figure:
    samples = checkpoint["results"]["samples"]
    if path.stem == "trajectory":
        caption = (
            "From noise (left) to samples (right), one per row. Titles are noise levels, the "
            "standard deviation of the noise relative to the scale of the image."
        )
    elif path.stem == "real":
        same = ", of the same classes as the samples" if "guidance" in samples else ""
        caption = f"Images evenly spaced in the data set{same}, without selection."
    else:
        caption = f"The first of {samples['images']} samples, in order, without selection."
        if "guidance" in samples:
            guidance = samples["guidance"]
            classes = ", ".join(str(each) for each in guidance["classes"])
            caption += (
                f" {guidance['kind'].capitalize()} guidance with scale {guidance['scale']}; "
                f"the classes {classes} alternate."
            )
    try:
        source = f"data:image/png;base64,{base64.b64encode(_png(path)).decode()}"
    except Exception as error:  # Decoders raise many exception types for damaged files.
        return Figure(f"{path.name} is missing or damaged: {brief(error)}. {caption}")
    title, alternative = TITLES[path.stem], ALTERNATIVES[path.stem]
    return Figure(caption, picture=source, alternative=alternative, title=title)


def _png(path: Path) -> bytes:
    """The bytes of a PNG file, reduced in size if it is large. Raise exceptions if damaged."""
    check_regular(path)
    with Image.open(path, formats=["PNG"]) as picture:
        if max(picture.size) <= MAX_SIDE:
            picture.load()  # Damage raises an exception here.
            return path.read_bytes()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        reduced = io.BytesIO()
        picture.save(reduced, "png")
    return reduced.getvalue()


def _training(curves: ReportData) -> Figure | None:
    """The chart of the losses; None without any."""
    lines = [charts.Line(name, each["steps"], each["values"]) for name, each in curves.items()]
    if not lines:
        return None
    title = f"Loss by training step: {' and '.join(line.name for line in lines)}"
    chart = charts.line_chart(
        lines, chart_id="training", title=title, x_label="step", y_label="loss"
    )
    caption = (
        f"{title}. A training loss is the mean over the steps since the previous point, with "
        "dropout; a held-out loss is that of the averaged parameters, without dropout."
    )
    return Figure(caption, chart)
