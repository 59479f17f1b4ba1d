"""The page of a report: one HTML file with its style, pictures and charts inside, without scripts."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from PIL import Image

from report import charts
from report.charts import Markup, element, join

Results = dict[str, Any]

SHOWN_BY_STEP = ("bits/dim", "FID", "FD")  # in charts: measures whose names begin so
LARGEST = 1600  # pixels of a picture's longer side; larger ones are shown smaller
STYLE = Path(__file__).with_name("style.css")


def render(data: Results, folder: Path) -> str:
    """The page for what `report.gather` found in `folder`, whose pictures it reads."""
    title = f"Evaluation of {_subject(data['config'])}"
    several = len(data["checkpoints"]) > 1
    sections = [
        _overview(data["checkpoints"]) if several else None,
        *(_checkpoint(checkpoint, folder) for checkpoint in data["checkpoints"]),
        element("div", _curves(data["curves"]), _environments(data["environments"]), class_="pair"),
        _config(data["config"]),
    ]
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup(
            '<link rel="icon" href="data:,">'
        ),  # Else browsers ask for one, and log that there is none.
        element("title", title),
        element("style", Markup(STYLE.read_text())),
    )
    header = element("header", element("h1", title), _facts(data))
    main = element("main", join([section for section in sections if section]))
    footer = element(
        "footer", "The same data are in ", element("code", "report.json"), ", beside this file."
    )
    return f"<!doctype html>\n{element('html', head, element('body', header, main, footer), lang='en')}\n"


def _subject(config: Results) -> str:
    """What was evaluated, in a few words."""
    if not config:
        return "an experiment without a config"
    return (
        f"{config['model']['name']} with {config['training']['sde']} on {config['data']['dataset']}"
    )


def _facts(data: Results) -> Markup:
    """The paragraph under the title."""
    config = data["config"]
    parts = [f"Folder {data['workdir']}/{data['name']}."]
    if config:
        side, channels = config["data"]["image_size"], config["data"]["num_channels"]
        parts += [
            f"Images of {side}x{side}x{channels}.",
            f"Sampler: {_sampler(config['sampling'])}.",
        ]
    parts += [f"{name} is not finished and left out." for name in data["unfinished"]]
    return element("p", " ".join(parts), class_="facts")


def _sampler(sampling: Results) -> str:
    if sampling["method"] == "pc":
        corrector = sampling["corrector"]
        return f"{sampling['predictor']}, {'no' if corrector == 'none' else corrector} corrector"
    if sampling["method"] == "solver":
        return f"{sampling['solver']}, {sampling['num_steps']} steps"
    return sampling["method"]


# --- numbers and tables -----------------------------------------------------------------------------------------------


def _plus_minus(value: float | None, stderr: float | None) -> str:
    """A value and its standard error, to two digits of the latter."""
    if value is None:
        return "-"
    if not stderr:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """In a box that scrolls by itself, with the keyboard too; the first cell of a row names it."""
    head = element("thead", element("tr", *(element("th", cell, scope="col") for cell in header)))
    line = lambda row: element(
        "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
    )
    table = element("table", element("caption", caption), head, element("tbody", *map(line, rows)))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


# --- sections ---------------------------------------------------------------------------------------------------------


def _overview(checkpoints: Sequence[Results]) -> Markup:
    names = list(
        dict.fromkeys(measure["name"] for each in checkpoints for measure in each["measures"])
    )
    rows = []
    for each in checkpoints:
        found = {
            measure["name"]: _plus_minus(measure["value"], measure["stderr"])
            for measure in each["measures"]
        }
        link = element("a", str(each["number"]), href=f"#checkpoint-{each['number']}")
        rows.append((link, str(each["results"]["step"]), *(found.get(name, "-") for name in names)))
    table = _table(
        "Measures of all checkpoints; ± is the standard error.",
        ("checkpoint", "step", *names),
        rows,
    )
    groups = {kind: [name for name in names if name.startswith(kind)] for kind in SHOWN_BY_STEP}
    figures = [_by_step(checkpoints, kind, group) for kind, group in groups.items() if group]
    return element(
        "section", element("h2", "Checkpoints"), element("div", *figures, class_="figures"), table
    )


def _by_step(checkpoints: Sequence[Results], kind: str, names: Sequence[str]) -> Markup:
    lines = []
    for name in names:
        points = [
            (c["results"]["step"], m["value"])
            for c in checkpoints
            for m in c["measures"]
            if m["name"] == name
        ]
        lines.append(
            charts.Line(name.split(" (")[0].removeprefix(f"{kind}, "), *zip(*sorted(points)))
        )
    title = f"{'; '.join(names)}: by training step"
    return element(
        "figure", charts.line_chart(lines, title, "step", kind), element("figcaption", f"{title}.")
    )


def _checkpoint(checkpoint: Results, folder: Path) -> Markup:
    number, step = checkpoint["number"], checkpoint["results"]["step"]
    pictures = [_picture(folder / name, checkpoint) for name in checkpoint["pictures"]]
    parts = [
        element("h2", f"Checkpoint {number}, step {step}"),
        _highlights(checkpoint),
        element("div", *pictures, *_histogram(checkpoint), class_="figures"),
        _measures(checkpoint["measures"]),
    ]
    return element("section", join(parts), id=f"checkpoint-{number}")


def _highlights(checkpoint: Results) -> Markup:
    """A few numbers in large type."""
    results, sampling = checkpoint["results"], checkpoint["sampling"]
    shown = []
    if "bpd" in results:
        shown.append(("bits/dim", _plus_minus(results["bpd"]["mean"], results["bpd"]["stderr"])))
    if "metrics" in results:
        frechet = results["metrics"]["frechet"]
        shown.append((frechet["name"], _plus_minus(frechet["value"], frechet["stderr"])))
    if sampling:
        shown.append(("NFE of an image", _nfe(sampling["nfe"])))
        rate, included = sampling["images_per_second"], sampling["compilation_included"]
        label = "images/s" + (", with compilation" if included else "")
        shown.append((label, "not measured" if rate is None else f"{rate:.3g}"))
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in shown]
    return element("dl", *pairs, class_="highlights")


def _nfe(nfe: Results) -> str:
    mean = f"{nfe['mean']:.0f}"
    return mean if nfe["least"] == nfe["most"] else f"{mean} ({nfe['least']} to {nfe['most']})"


def _measures(measures: Sequence[Results]) -> Markup:
    name = lambda m: join([Markup(html.escape(m["name"])), element("small", m["note"])], "")
    rows = [(name(m), _plus_minus(m["value"], m["stderr"]), str(m["images"])) for m in measures]
    return (
        _table("± is the standard error.", ("measure", "value", "images"), rows)
        if rows
        else Markup()
    )


def _picture(path: Path, checkpoint: Results) -> Markup:
    samples = checkpoint["results"]["samples"]
    caption = {
        "samples": f"The first of {samples['images']} samples, in order; none chosen.",
        "trajectory": "From noise, on the left, to samples, a row for each.",
    }[path.stem]
    if path.stem == "samples" and "guidance" in samples:
        guidance = samples["guidance"]
        classes = ", ".join(map(str, guidance["classes"]))
        caption += f" {guidance['kind'].capitalize()} guidance, scale {guidance['scale']}, to classes {classes} in turn."
    alt = {
        "samples": "Grid of generated images",
        "trajectory": "Rows of images that turn from noise into samples",
    }
    source = f"data:image/png;base64,{base64.b64encode(_png(path)).decode()}"
    image = Markup(element("img", src=source, alt=alt[path.stem]).removesuffix("</img>"))
    return element("figure", image, element("figcaption", caption))


def _png(path: Path) -> bytes:
    """The file, or if it is large a smaller picture of the same."""
    with Image.open(path) as picture:
        if max(picture.size) <= LARGEST:
            return path.read_bytes()
        picture.thumbnail((LARGEST, LARGEST))
        smaller = io.BytesIO()
        picture.save(smaller, "png")
    return smaller.getvalue()


def _histogram(checkpoint: Results) -> list[Markup]:
    found = checkpoint["bpd_histogram"]
    if found is None:
        return []
    title = f"Histogram of the bits/dim of {sum(found['counts'])} images"
    chart = charts.histogram(title=title, x_label="bits/dim", y_label="images", **found)
    return [element("figure", chart, element("figcaption", f"{title}."))]


def _curves(found: Results) -> Markup:
    lines = [charts.Line(name, curve["steps"], curve["values"]) for name, curve in found.items()]
    if not any(line.x for line in lines):
        missing = element(
            "p",
            "The workdir has no losses: it was not trained here, or its tensorboard folder is gone.",
        )
        return element("section", element("h2", "Training"), missing)
    title = f"Loss by training step: {' and '.join(line.name for line in lines)}"
    caption = f"{title}. Training losses are means over the steps since the point before; held-out ones are of a batch."
    figure = element(
        "figure", charts.line_chart(lines, title, "step", "loss"), element("figcaption", caption)
    )
    return element("section", element("h2", "Training"), element("div", figure, class_="figures"))


def _environments(environments: Sequence[Results]) -> Markup:
    if not environments:
        body = element("p", "Not recorded: the evaluation is older than the report.")
    else:
        names = list(dict.fromkeys(name for each in environments for name in each))
        rows = [(name, *(each.get(name, "-") for each in environments)) for name in names]
        runs = (
            ["version"]
            if len(environments) == 1
            else [f"run {i + 1}" for i in range(len(environments))]
        )
        body = _table("What the evaluation ran with", ("package", *runs), rows)
    return element("section", element("h2", "Versions"), body)


def _config(config: Results) -> Markup:
    """All fields, folded away."""
    fields = traverse_util.flatten_dict(config, sep=".")
    rows = [(f"{name}", json.dumps(value)) for name, value in sorted(fields.items())]
    table = _table("Fields of the config", ("field", "value"), rows)
    details = element("details", element("summary", f"{len(rows)} fields"), table)
    return element("section", element("h2", "Config"), details)
