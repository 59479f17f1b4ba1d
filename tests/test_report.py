"""The report of an evaluation: its data, charts and page, also in a browser."""

import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import report
from errors import InputError
from report import charts, data, measures
from report.training_log import Curve
from tests import tiny

HOSTILE = "<script>alert('&\"')</script>" + "long" * 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
VOID = {"meta", "link", "img", "!doctype"}
ROOT = Path(__file__).parents[1]

# JavaScript: the smallest font size in a chart, in pixels; texts that a chart cuts off; the colour
# of the first line of a chart.
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg text')].map(text =>
    text.ownerSVGElement.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)))"""
TEXT_OUTSIDE = """[...document.querySelectorAll('svg text')].filter(text => {
    const inner = text.getBoundingClientRect();
    const outer = text.closest('figure').getBoundingClientRect();
    return inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).map(text => text.textContent)"""
FIRST_SERIES = "getComputedStyle(document.querySelector('svg [style*=series-0]')).stroke"


def summary(mean, stderr=0.0123):
    return {"mean": mean, "stderr": stderr, "images": 40, "failed": 1}


def results(number):
    """A results.json as written by version 0.5.1."""
    bpd = summary(3.0 / number) | {"passes": 2, "nfe": 90.5, "data": "test", "probe_stderr": 0.001}
    frechet = {
        "name": "FD_n12",
        "value": 8.0 / number,
        "stderr": 1.0,
        "extrapolated": None,
        "rank_deficient": True,
    }
    metrics = {
        "features": f"{HOSTILE}-1a2b3c4d",
        "images": 12,
        "rounding": "nearest",
        "reference": {"images": 99},
        "frechet": frechet,
        "kid": {"value": 0.0012, "stderr": 0.0004, "block": 6},
        "inception_score": None,
        "precision": {"value": 1.0, "stderr": 0.0},
        "recall": {"value": 0.25, "stderr": 0.125},
    }
    guidance = {"kind": "classifier", "classes": [3, 1], "scale": 4.0}
    return {
        "step": 100 * number,
        "loss": summary(0.5),
        "bpd": bpd | {"solver_error": float("nan"), "bound": summary(3.5)},
        "samples": {"images": 12, "nfe": 20.0, "guidance": guidance},
        "metrics": metrics,
    }


def write_checkpoint(folder, number):
    """Write the files of a checkpoint's evaluation: two passes of bits/dim, in four rounds."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results(number)))
    first_pass = np.append(np.arange(40) / 40, np.nan)
    both = np.concatenate([first_pass, first_pass + 1])
    for index, bpd in enumerate(np.split(both, (30, 41, 71))):
        np.savez(folder / f"bpd_{index}.npz", bpd=bpd)
    for index, (size, seconds) in enumerate(((8, 100.0), (4, 2.0))):
        times = {"seconds": np.array([seconds]), "first": np.array([index == 0])}
        np.savez(folder / f"samples_{index}.npz", nfe=np.full(size, 16 + 4 * index), **times)
    Image.new("RGB", (2000, 1000), "red").save(folder / "samples.png")
    Image.new("L", (64, 32)).save(folder / "trajectory.png")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two finished checkpoints and an unfinished one, with a config that contains markup."""
    workdir = tmp_path_factory.mktemp("workdir")
    folder, config = workdir / "eval", tiny.config()
    config.data.dataset = HOSTILE
    (folder / "checkpoint_10").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    environment = {"python": "3.11", "devices": "8 x " + HOSTILE}
    (folder / "environments.json").write_text(json.dumps([environment]))
    for number in (1, 2):
        write_checkpoint(folder / f"checkpoint_{number}", number)
    entries = [{"step": step, "training/loss": 10 / step} for step in range(10, 210, 10)]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    report.write(workdir)
    return workdir


@pytest.fixture(scope="module")
def page(workdir):
    return (workdir / "eval" / "report.html").read_text()


# --- data ---


def test_report_json(workdir):
    text = (workdir / "eval" / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # There is no NaN.
    first, second = content["checkpoints"]
    assert (first["number"], second["number"]) == (1, 2)
    assert content["unfinished"] == ["checkpoint_10"]
    assert first["results"]["bpd"]["solver_error"] is None
    assert first["sampling"] == {
        "nfe": {"mean": pytest.approx(208 / 12), "min": 16, "max": 20},
        "images_per_second": 2.0,  # of the second round; the first one compiled
        "compilation_included": False,
    }
    assert first["pictures"] == ["checkpoint_1/samples.png", "checkpoint_1/trajectory.png"]
    histogram = first["bpd_histogram"]
    per_image = np.arange(40) / 40 + 0.5  # the mean of both passes; one more image failed
    assert sum(histogram["counts"]) == 40
    assert histogram["mean"] == pytest.approx(per_image.mean())
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((0.5, per_image.max()))
    assert content["curves"]["training"]["steps"] == list(range(10, 210, 10))
    assert content["config"]["data"]["dataset"] == HOSTILE


def test_measures_of_version_0_5_1():
    found = measures.of(results(1))
    assert [measure["name"] for measure in found] == [
        "held-out loss",
        "bits/dim, test images",
        "bits/dim, test images, bound",
        *(f"{name} ({HOSTILE}-1a2b3c4d, n = 12)" for name in ("FD_n12", "KID")),
        *(f"{name} ({HOSTILE}-1a2b3c4d, n = 12)" for name in ("precision", "recall")),
    ]
    assert found[1] == {
        "name": "bits/dim, test images",
        "value": 3.0,
        "stderr": 0.0123,
        "images": 40,
        "note": "1 images failed and are excluded",
    }
    assert "not comparable" in found[3]["note"]


def test_measures_are_those_of_results_json():
    measure = {"name": "a", "value": 1.0, "stderr": None, "images": 2, "note": "b"}
    assert measures.of(results(1) | {"measures": [measure]}) == [measure]


def test_an_evaluation_of_less(tmp_path):
    """What is missing (images, times, curves, config, environments) is stated or left out."""
    folder = tmp_path / "less" / "checkpoint_3"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="less has no results of an evaluation; run --mode=eval"):
        report.write(tmp_path, "less")
    samples = {"images": 4, "nfe": 7.0}
    measure = {"name": "FID", "value": None, "stderr": None, "images": 4, "note": ""}
    content = {"step": 5, "samples": samples, "measures": [measure]}
    (folder / "results.json").write_text(json.dumps(content))
    np.savez(folder / "samples_0.npz", nfe=np.full(4, 7))
    page = report.write(tmp_path, "less").read_text()
    content = json.loads((tmp_path / "less" / "report.json").read_text())
    assert content["checkpoints"][0]["sampling"]["images_per_second"] is None
    for words in (
        "not measured",
        "no training curves",
        "Not recorded",
        "0 fields",
        "an experiment without a config",
    ):
        assert words in page


def test_measures_that_are_not_finite_are_not_plotted(tmp_path):
    for number in (1, 2):
        folder = tmp_path / "eval" / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        values = {"FID": 3.0 if number == 1 else math.nan, "FD": math.inf}
        found = [
            {"name": name, "value": value, "stderr": None, "images": 4, "note": ""}
            for name, value in values.items()
        ]
        (folder / "results.json").write_text(json.dumps({"step": number, "measures": found}))
    page = report.write(tmp_path).read_text()
    assert page.count("<svg") == 1
    assert "FID by training step: FID" in page


def test_the_command_makes_the_same_report_again(workdir):
    files = [workdir / "eval" / name for name in ("report.html", "report.json")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    flags = [
        "--config=configs/vp/digits_ddpmpp_continuous.py",
        "--mode=report",
        f"--workdir={workdir}",
    ]
    finished = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"{files[0]}\n"
    assert [path.read_bytes() for path in files] == before


def test_other_processes_write_no_report(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert report.write(tmp_path) == tmp_path / "eval" / "report.html"
    assert not list(tmp_path.iterdir())


def test_the_speed_of_a_single_round_includes_its_compilation(tmp_path):
    times = {"seconds": np.array([3.0]), "first": np.array([True])}
    np.savez(tmp_path / "samples_0.npz", nfe=np.ones(6), **times)
    speed = data._sampling(tmp_path)
    assert (speed["images_per_second"], speed["compilation_included"]) == (2.0, True)


def test_environments_are_noted_once(tmp_path):
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    for _ in range(2):
        report.note_environment(tmp_path, mesh)
    (environment,) = json.loads((tmp_path / "environments.json").read_text())
    assert environment["devices"] == f"{jax.device_count()} x cpu"
    assert environment["jax"] == jax.__version__


def test_thin_curves_keep_the_mean():
    curve = Curve(np.arange(1000), np.sin(np.arange(1000.0)))
    thinned = data.thin(curve, 50)
    assert len(thinned.steps) == len(thinned.values) == 50
    assert thinned.values.mean() == pytest.approx(curve.values.mean())
    assert data.thin(Curve(np.array([1, 2]), np.array([4.0, 3.0])), 50).steps.tolist() == [1, 2]
    assert not len(data.thin(Curve(np.array([]), np.array([])), 50).steps)


# --- page ---


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


def test_the_page_is_self_contained(page):
    """It has no scripts and loads nothing, and text from a config remains text."""
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    assert "script" not in tags
    assert sum(HOSTILE in text for text in outline.text) >= 4  # title, heading, config, devices
    for tag, attributes in outline.elements:
        links = [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "use":  # markers and ticks within a chart
            assert all(link.startswith("#") for link in links), links
        else:
            assert all(link.startswith(("data:", "#checkpoint-")) for link in links), links
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(page) < 250_000  # The picture of 2000x1000 pixels is embedded at a smaller size.


def test_the_page_shows_the_results(page):
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    charts = [attributes for tag, attributes in outline.elements if tag == "svg"]
    assert len(charts) == 5  # two by step, two histograms, losses
    assert all(attributes["role"] == "img" for attributes in charts)
    assert tags.count("h1") == 1
    text = " ".join(outline.text)
    assert "nan" not in text.replace(HOSTILE, "")
    for words in (
        "3.000 ± 0.012",
        "8.0 ± 1.0",
        "0.00120 ± 0.00040",
        "17 (16 to 20)",
        "checkpoint_10 is unfinished",
        "Classifier guidance with scale 4.0; the classes 3, 1 alternate.",
    ):
        assert words in text


def test_ids_are_unique_and_references_exist(page):
    elements = Outline(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([\w-]+)', page)
    assert set(references) <= set(ids)


def test_contrast():
    """Text has a contrast of 4.5 : 1 and lines of charts of 3 : 1 (WCAG 2.1, 1.4.3 and 1.4.11)."""
    style = (ROOT / "report" / "style.css").read_text()
    schemes = re.findall(r":root \{.*?\}", style, re.DOTALL)
    assert len(schemes) == 2  # light and dark
    required = {"text": 4.5, "soft": 4.5, "link": 4.5}
    required |= {variable[2:]: 3 for variable in charts.VARIABLES.values() if "series" in variable}
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        for name, ratio in required.items():
            for background in ("page", "card"):
                assert contrast(colours[name], colours[background]) > ratio


def contrast(*colours):
    """The contrast ratio of two colours, "#rrggbb", as defined by WCAG 2.1."""
    luminances = []
    for colour in colours:
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        luminances.append(linear @ (0.2126, 0.7152, 0.0722))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


# --- browser ---


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, or that of `playwright install chromium`."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        found = found or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("Chromium is not installed; run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_a_browser_shows_the_page(workdir, browser, width, scheme):
    """Without errors or requests, in the colour scheme, and no wider than the window."""
    messages, requests = [], []
    page = browser.new_page(
        viewport={"width": width, "height": 740}, is_mobile=width < 500, color_scheme=scheme
    )
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url.split(":")[0]))
    page.goto((workdir / "eval" / "report.html").as_uri())
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
    assert messages == []
    assert requests == ["file"]
    page.close()
