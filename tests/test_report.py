"""The report of an evaluation: its data, damaged files, and its page."""

import base64
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import numpy as np
import pytest

from runs import page, report
from runs.training_log import Curve
from tests import evaluated
from tests.refusal import refused

# --- data ---


def test_report_json(reported):
    text = (reported / "eval" / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # There is no NaN.
    first, second = content["checkpoints"]
    assert (first["number"], second["number"]) == (1, 2)
    assert content["unfinished"] == ["checkpoint_10"]
    assert first["results"]["bpd"]["solver_error"] is None
    names = ("samples.png", "real.png", "trajectory.png")
    assert first["pictures"] == [f"checkpoint_1/{name}" for name in names]
    assert content["curves"]["training"]["steps"] == list(range(10, 210, 10))
    assert content["config"]["data"]["dataset"] == evaluated.HOSTILE


def test_an_evaluation_of_less(tmp_path):
    """Missing images, curves, config and environments are stated, and NaN is not plotted."""
    refused("less has no results of an evaluation; run --mode=eval", report.write, tmp_path, "less")
    for number in (3, 4):
        folder = tmp_path / "less" / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        common = {"stderr": None, "images": 4, "note": ""}
        values = {"FID": 3.0 if number == 3 else math.nan, "FD": math.inf}
        measures = [{"name": name, "value": value, **common} for name, value in values.items()]
        samples = evaluated.samples(20, compiled=True)
        content = {"step": number, "samples": samples, "measures": measures}
        (folder / "results.json").write_text(json.dumps(content))
    page = report.write(tmp_path, "less").read_text()
    assert page.count("data:image/svg") == 1
    for words in (
        "FID by training step: FID",
        "images/s, with compilation",
        "samples.png is missing or damaged: ",
        "no training curves",
        "Not recorded",
        "0 fields",
        "an experiment without a config",
    ):
        assert words in page


def test_the_same_report_is_made_again(reported, tmp_path, monkeypatch):
    """Only process 0 writes it."""
    files = [reported / "eval" / name for name in ("report.html", "report.json")]
    before = [path.read_bytes() for path in files]
    assert report.write(reported) == files[0]
    assert [path.read_bytes() for path in files] == before
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert report.write(tmp_path) == tmp_path / "eval" / "report.html"
    assert not list(tmp_path.iterdir())


def test_thin_curves_keep_the_mean():
    curve = Curve(np.arange(1000), np.sin(np.arange(1000.0)))
    thinned = report.thin(curve, 50)
    assert len(thinned.steps) == len(thinned.values) == 50
    assert thinned.values.mean() == pytest.approx(curve.values.mean())
    assert report.thin(Curve(np.array([1, 2]), np.array([4.0, 3.0])), 50).steps.tolist() == [1, 2]
    assert not len(report.thin(Curve(np.array([]), np.array([])), 50).steps)


# --- damaged files ---


def change(path, **changes):
    """Change or remove (None) entries of a results.json or config.json."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def remake(path, content=None):
    """Replace a file by other content, or by a folder."""
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


BPD = {"images": 3, "mean": 1.0}
ODD_BINS = {"counts": [1, 2], "edges": [1.0, 2.0, 3.0, 4.0]}
MEASURE = {"name": "a", "value": 1.0, "stderr": -1.0, "images": 1, "note": ""}
RESULTS = "checkpoint_1/results.json"
DAMAGE = [
    (RESULTS, lambda path: remake(path, b"")),
    (RESULTS, remake),
    (RESULTS, lambda path: change(path, step=None)),
    (RESULTS, lambda path: change(path, bpd=3)),
    (RESULTS, lambda path: change(path, measures=[{}])),
    (RESULTS, lambda path: change(path, samples={"images": 3})),
    ("config.json", lambda path: remake(path, b"{")),
    ("config.json", lambda path: change(path, model=None)),
    ("../metrics.jsonl", remake),
]
ODD = [  # Files whose values make no sense.
    (RESULTS, lambda path: change(path, measures=[MEASURE])),
    (RESULTS, lambda path: change(path, bpd=BPD | {"histogram": ODD_BINS})),
    (RESULTS, lambda path: change(path, samples=evaluated.samples(1) | {"nfe_range": []})),
    (RESULTS, lambda path: change(path, bpd=BPD | {"mean": math.nan})),
]


def test_damaged_files_are_one_line(tmp_path):
    """It names the file, or the folder of files with odd values."""
    for number, (name, damage) in enumerate(DAMAGE + ODD):
        workdir, path = tmp_path / str(number), Path(name)
        evaluated.write_workdir(workdir)
        damage(workdir / "eval" / name)
        message = refused(str(workdir), report.write, workdir)
        assert number >= len(DAMAGE) or path.name in message
        assert not (workdir / "eval" / "report.html").exists()


def test_strays_and_damaged_environments_do_not_matter(tmp_path, caplog):
    evaluated.write_workdir(tmp_path)
    folder = tmp_path / "eval"
    expected = report.gather(folder, tmp_path)
    (folder / "checkpoint_x").mkdir()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for line in ('{"step": -1, "training/loss": 1}', '{"step": 1e9}', '{"step": true}', "[1]"):
            file.write(line + "\n")
        file.write('{"step": 5, "training/loss": "text", "held_out/loss": NaN}\n')
        file.write('{"step": 6, "training/loss": 1' + "0" * 400 + "}\n")
    assert report.gather(folder, tmp_path) == expected
    remake(folder / "environments.json", b'["text"]')
    assert report.gather(folder, tmp_path) == expected | {"environments": []}
    assert "environments.json is damaged" in caplog.text
    for _ in range(2):  # Each environment is noted once.
        report.note_environment(folder, jax.sharding.Mesh(jax.devices(), ("data",)))
    (environment,) = json.loads((folder / "environments.json").read_text())
    assert environment["devices"] == f"{jax.device_count()} x cpu"
    assert environment["jax"] == jax.__version__


# --- the page ---

VOID = {"meta", "link", "img", "!doctype"}


class Outline(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its text.

    Fails if elements are not closed in order.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def text(reported):
    return (reported / "eval" / "report.html").read_text()


def test_the_page_is_self_contained(text):
    """It has no scripts and loads nothing, text from a config remains text, and ids are unique."""
    outline = Outline(text)
    assert "script" not in [tag for tag, _ in outline.elements]
    # In title, heading, config and devices.
    assert sum(evaluated.HOSTILE in text for text in outline.text) >= 4
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in outline.elements:
        links = [attributes[name] for name in ("src", "href") if name in attributes]
        assert all(link.startswith(("data:", "#checkpoint-")) for link in links), links
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\(|@import", text)
    assert len(text) < 250_000  # The picture of 2000x1000 pixels is embedded at a smaller size.


def test_the_page_shows_the_results(text):
    outline = Outline(text)
    tags = [tag for tag, _ in outline.elements]
    charts = [found["alt"] for _, found in outline.elements if found.get("class") == "chart"]
    assert len(charts) == len(set(charts)) == 5  # By step, histograms, losses.
    assert tags.count("h1") == 1
    shown = " ".join(" ".join(outline.text).split())
    assert "nan" not in shown.replace(evaluated.HOSTILE, "")
    for words in (
        "3.000 ± 0.012",
        "8.0 ± 1.0",
        "0.00120 ± 0.00040",
        "17 (16 to 20)",
        "checkpoint_10 is unfinished",
        "Classifier guidance with scale 4.0; the classes 3, 1 alternate.",
        "Held-out images.",
        "Images evenly spaced in the data set, of the same classes as the samples, without",
    ):
        assert words in shown


def test_pictures_that_cannot_be_read_are_shown_as_missing(tmp_path):
    evaluated.write_workdir(tmp_path)
    for number, damage in ((1, lambda path: remake(path, b"\x89PNG\r\n\x1a\n")), (2, remake)):
        damage(tmp_path / "eval" / f"checkpoint_{number}" / "samples.png")
    page = report.write(tmp_path).read_text()
    assert page.count("samples.png is missing or damaged: ") == 2
    assert page.count("data:image/png;base64,") == 4  # of three pictures for each checkpoint


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_a_browser_shows_the_page(reported, browser, width, scheme):
    """Without errors or requests, in the color scheme, and no wider than the window."""
    messages, requests = [], []
    page = browser.new_page(
        viewport={"width": width, "height": 740}, is_mobile=width < 500, color_scheme=scheme
    )
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url.split(":")[0]))
    page.goto((reported / "eval" / "report.html").as_uri())
    page.locator("summary").click()  # Unfold the config.
    assert page.locator("details table").is_visible()
    assert page.evaluate("innerWidth") == width  # on a phone, due to the page's viewport element
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    expected = {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected
    assert (messages, requests) == ([], ["file"])
    page.close()


# --- charts ---

SVG = "{http://www.w3.org/2000/svg}"


def decoded(picture):
    return ET.fromstring(base64.b64decode(picture.url.partition(",")[2]))


def texts(picture):
    return {text.text for text in decoded(picture).iter(f"{SVG}text")}


def drawn(picture, style):
    """The points of the lines and bars with this inline style, without those of the legend."""
    paths = [path for path in decoded(picture).iter(f"{SVG}path") if path.get("clip-path")]
    chosen = [path.get("d") for path in paths if style in path.get("style", "")]
    return [np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", each), float) for each in chosen]


def test_line_charts_show_their_numbers():
    """Points lie where they should, text is escaped and not parsed, and the same data agree."""
    lines = {"a<b $c$": ([0, 5000, 10_000], [0, 5, 10]), "d": ([0, 1], [10, 0])}
    chart = page.line_chart(lines, "t", "y")
    (first,), (second,) = (drawn(chart, f"stroke: {color}") for color in ("#1f77b4", "#ff7f0e"))
    assert first[1] == pytest.approx(np.mean([first[0], first[2]], 0), abs=0.1)
    assert second[:, 1] == pytest.approx([first[2, 1], first[0, 1]])
    assert first[0, 1] > first[2, 1]  # The y of an SVG increases downwards.
    assert {"a<b $c$", "d", "step", "y", "0", "10k", "10"} <= texts(chart)
    assert page.line_chart(lines, "t", "y") == chart


def test_labels_of_the_y_axis():
    """Logarithmic from a ratio of five on, and always plain numbers."""
    for values, labels in (
        ([2.0, 9.0], {"2", "4", "6", "8"}),
        ([0.1, 4.0], {"0.1", "0.2", "0.5", "1", "2"}),
        ([0.002, 400.0], {"0.01", "1", "100"}),
        ([-1.0, 400.0], {"0", "100", "400"}),
        ([10_000.0, 10_002.0], {"10000.5", "10002.0"}),
    ):
        found = texts(page.line_chart({"a": ([1, 2], values)}, "t", "y"))
        assert labels <= found
        assert all(re.fullmatch(r"\u2212?[\d.]+", text) for text in found - {"a", "step", "y"})


def test_histograms_show_their_numbers():
    chart = page.histogram([1, 4, 2], [0, 1, 2, 3], 1.5, "t")
    bars = drawn(chart, "fill: #1f77b4")
    heights = [np.ptp(bar[:, 1]) for bar in bars]
    assert heights == pytest.approx(heights[0] * np.array([1, 4, 2]), abs=0.2)
    (mean,) = drawn(chart, "stroke: #ff7f0e")
    assert mean[:, 0] == pytest.approx(bars[1][:, 0].min() + np.ptp(bars[1][:, 0]) / 2, abs=0.1)
    assert {"mean 1.5", "bits/dim", "images"} <= texts(chart)
