"""The report of an evaluation: its data, damaged files, and its page."""

import html.parser
import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from runs import charts, report
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
    assert first["sampling"] == {
        "nfe": {"mean": pytest.approx(208 / 12), "least": 16, "most": 20},
        "images_per_second": 2.0,  # of the second round; the first one compiled
        "compilation_included": False,
    }
    names = ("samples.png", "real.png", "trajectory.png")
    assert first["pictures"] == [f"checkpoint_1/{name}" for name in names]
    histogram = first["bpd_histogram"]
    per_image = np.arange(40) / 40 + 0.5  # the mean of both passes; one more image failed
    assert sum(histogram["counts"]) == 40
    assert histogram["mean"] == pytest.approx(per_image.mean())
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((0.5, per_image.max()))
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
        content = {"step": number, "samples": {"images": 4}, "measures": measures}
        (folder / "results.json").write_text(json.dumps(content))
        times = {"seconds": np.array([2.0]), "first": np.array([True])}
        np.savez(folder / "samples_0.npz", nfe=np.full(4, 7), **times)
    page = report.write(tmp_path, "less").read_text()
    found = json.loads((tmp_path / "less" / "report.json").read_text())["checkpoints"][0]
    assert found["sampling"]["images_per_second"] == 2
    assert found["sampling"]["compilation_included"]
    assert page.count("<svg") == 1
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


def test_the_same_report_is_made_again(reported):
    files = [reported / "eval" / name for name in ("report.html", "report.json")]
    before = [path.read_bytes() for path in files]
    assert report.write(reported) == files[0]
    assert [path.read_bytes() for path in files] == before


def test_other_processes_write_no_report(tmp_path, monkeypatch):
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


def odd_rounds(path, **changes):
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {k: np.full(arrays[k].shape, v) for k, v in changes.items()})


MEASURE = {"name": "a", "value": 1.0, "stderr": -1.0, "images": 1, "note": ""}
BPD = ("passes", "images", "failed", "folder")
RESULTS, ROUNDS = "checkpoint_1/results.json", "checkpoint_1/bpd_1.npz"
DAMAGE = [
    (RESULTS, lambda path: remake(path, b"")),
    (RESULTS, remake),
    (RESULTS, lambda path: change(path, step=None)),
    (RESULTS, lambda path: change(path, bpd=3)),
    (RESULTS, lambda path: change(path, measures=[{}])),
    (ROUNDS, lambda path: path.unlink()),
    (ROUNDS, lambda path: remake(path, b"")),
    (ROUNDS, lambda path: np.savez(path, a=np.ones(3))),
    (ROUNDS, lambda path: np.savez(path, bpd=np.ones(()))),
    ("checkpoint_1/samples_1.npz", lambda path: path.unlink()),
    ("checkpoint_1/samples_1.npz", remake),
    ("config.json", lambda path: remake(path, b"{")),
    ("config.json", lambda path: change(path, model=None)),
    ("../metrics.jsonl", remake),
]
ODD = [  # Files whose values make no sense.
    (RESULTS, lambda path: change(path, measures=[MEASURE])),
    (RESULTS, lambda path: change(path, bpd={"passes": 0, "images": 0, "failed": 0})),
    (RESULTS, lambda path: change(path, bpd=dict.fromkeys(BPD, 1))),
    ("checkpoint_1/bpd_0.npz", lambda path: np.savez(path, bpd=np.array([-1e308, 1e308, 0.0]))),
    ("checkpoint_1/samples_0.npz", lambda path: odd_rounds(path, nfe=np.nan)),
    ("checkpoint_1/samples_0.npz", lambda path: odd_rounds(path, seconds="a")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE + ODD)
def test_damaged_files_are_one_line(tmp_path, name, damage):
    """It names the file, the rounds that lack one, or the folder of files with odd values."""
    evaluated.write_workdir(tmp_path)
    damage(tmp_path / "eval" / name)
    message, path = refused("", report.write, tmp_path), Path(name)
    assert str(tmp_path) in message
    if (name, damage) in DAMAGE:
        assert path.name in message or f"{path.parent} has rounds {path.stem[:-2]}_*.npz" in message
    assert not (tmp_path / "eval" / "report.html").exists()


def test_strays_and_damaged_environments_do_not_matter(tmp_path, caplog):
    """Nor do rounds of an earlier evaluation of more images, but not in place of a missing one."""
    evaluated.write_workdir(tmp_path)
    folder = tmp_path / "eval"
    expected = report.gather(folder, tmp_path)
    (folder / "checkpoint_x").mkdir()
    rounds = folder / "checkpoint_1"
    (rounds / "samples_x.npz").write_text("")
    for name in ("samples", "bpd"):
        last = len(list(rounds.glob(f"{name}_[0-9].npz")))
        shutil.copy(rounds / f"{name}_0.npz", rounds / f"{name}_{last}.npz")
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
    (rounds / "samples_1.npz").unlink()
    refused("has rounds samples_", report.gather, folder, tmp_path)


# --- the page ---

VOID = {"meta", "link", "img", "!doctype"}

# JavaScript: the smallest font size in a chart, in pixels; texts that a chart cuts off; the color
# of the first line of a chart.
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg text')].map(text =>
    text.ownerSVGElement.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)))"""
TEXT_OUTSIDE = """[...document.querySelectorAll('svg text')].filter(text => {
    const inner = text.getBoundingClientRect();
    const outer = text.closest('figure').getBoundingClientRect();
    return inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).map(text => text.textContent)"""
FIRST_SERIES = "getComputedStyle(document.querySelector('svg [style*=series-0]')).stroke"


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
def page(reported):
    return (reported / "eval" / "report.html").read_text()


def test_the_page_is_self_contained(page):
    """It has no scripts and loads nothing, text from a config remains text, and ids are unique."""
    outline = Outline(page)
    assert "script" not in [tag for tag, _ in outline.elements]
    # In title, heading, config and devices.
    assert sum(evaluated.HOSTILE in text for text in outline.text) >= 4
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', page)) <= set(ids)
    for tag, attributes in outline.elements:
        links = [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        start = "#" if tag == "use" else ("data:", "#checkpoint-")  # Charts reuse their markers.
        assert all(link.startswith(start) for link in links), links
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(page) < 250_000  # The picture of 2000x1000 pixels is embedded at a smaller size.


def test_the_page_shows_the_results(page):
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    labels = [found["aria-label"] for _, found in outline.elements if found.get("role") == "img"]
    assert len(labels) == len(set(labels)) == tags.count("svg") == 5  # By step, histograms, losses.
    assert tags.count("h1") == 1
    text = " ".join(" ".join(outline.text).split())
    assert "nan" not in text.replace(evaluated.HOSTILE, "")
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
        assert words in text


def test_pictures_that_cannot_be_read_are_shown_as_missing(tmp_path):
    evaluated.write_workdir(tmp_path)
    for number, damage in ((1, lambda path: remake(path, b"\x89PNG\r\n\x1a\n")), (2, remake)):
        damage(tmp_path / "eval" / f"checkpoint_{number}" / "samples.png")
    page = report.write(tmp_path).read_text()
    assert page.count("samples.png is missing or damaged: ") == 2
    assert page.count("data:image/png;base64,") == 4  # of three pictures for each checkpoint


def test_contrast():
    """Text has a contrast of 4.5 : 1 and lines of charts of 3 : 1 (WCAG 2.1, 1.4.3 and 1.4.11)."""
    style = (Path(report.__file__).parent / "page.css").read_text()
    schemes = re.findall(r":root \{.*?\}", style, re.DOTALL)
    assert len(schemes) == 2  # light and dark
    required = {"text": 4.5, "soft": 4.5, "link": 4.5}
    required |= {variable[2:]: 3 for variable in charts.VARIABLES.values() if "series" in variable}
    for scheme in schemes:
        colors = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        for name, ratio in required.items():
            for background in ("page", "card"):
                assert contrast(colors[name], colors[background]) > ratio


def contrast(*colors):
    """The contrast ratio of two colors, "#rrggbb", as defined by WCAG 2.1."""
    channels = [[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors]
    channels = np.array(channels)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminances = linear @ (0.2126, 0.7152, 0.0722)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


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
    assert page.evaluate(SMALLEST_TEXT) > 9  # pixels
    assert page.evaluate(TEXT_OUTSIDE) == []
    expected = {
        "light": ("rgb(251, 251, 250)", "rgb(31, 95, 168)"),
        "dark": ("rgb(20, 23, 27)", "rgb(127, 182, 242)"),
    }
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected[scheme][0]
    assert page.evaluate(FIRST_SERIES) == expected[scheme][1]
    assert (messages, requests) == ([], ["file"])
    page.close()
