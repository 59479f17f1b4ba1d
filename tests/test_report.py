"""The report of an evaluation: its charts, the curves that it reads back, its page, and how a browser shows that."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from PIL import Image

from errors import InputError
from report import charts, curves, report_data
from tests import tiny

HOSTILE = "<script>alert('&\"')</script>" + "long" * 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
VOID = {"meta", "link", "img", "!doctype"}


def summary(mean, stderr=0.0123):
    return {"mean": mean, "stderr": stderr, "images": 40, "failed": 1}


def results(number):
    bpd = summary(3.0 / number) | {"passes": 2, "nfe": 90.5, "data": "test", "probe_stderr": 0.001}
    measures = {
        "features": f"{HOSTILE}-1a2b3c4d",
        "images": 12,
        "rounding": "nearest",
        "reference": {"images": 99},
    }
    measures |= {"kid": {"value": 0.0012, "stderr": 0.0004, "block": 6}, "inception_score": None}
    measures |= {
        "precision": {"value": 1.0, "stderr": 0.0},
        "recall": {"value": 0.25, "stderr": 0.125},
    }
    frechet = {
        "name": "FD_n12",
        "value": 8.0 / number,
        "stderr": 1.0,
        "extrapolated": None,
        "rank_deficient": True,
    }
    samples = {
        "images": 12,
        "nfe": 20.0,
        "guidance": {"kind": "classifier", "classes": [3, 1], "scale": 4.0},
    }
    return {
        "step": 100 * number,
        "loss": summary(0.5),
        "bpd": bpd | {"solver_error": float("nan"), "bound": summary(3.5)},
        "samples": samples,
        "metrics": measures | {"frechet": frechet},
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two finished checkpoints of a hostile config, and one that is not; bits/dim in two passes of two rounds."""
    workdir = tmp_path_factory.mktemp("workdir")
    folder, config = workdir / "eval", tiny.config()
    config.data.dataset = HOSTILE
    (folder / "checkpoint_10").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "environments.json").write_text(
        json.dumps([{"python": "3.11", "devices": "8 x " + HOSTILE}])
    )
    for number in (1, 2):
        here = folder / f"checkpoint_{number}"
        here.mkdir()
        (here / "results.json").write_text(json.dumps(results(number)))
        of_images = np.append(np.arange(40) / 40, np.nan)
        for index, bpd in enumerate(
            np.split(np.concatenate([of_images, of_images + 1]), (30, 41, 71))
        ):
            np.savez(here / f"bpd_{index}.npz", bpd=bpd)
        for index, (size, seconds) in enumerate(((8, 100.0), (4, 2.0))):
            times = {"seconds": np.array([seconds]), "first": np.array([index == 0])}
            np.savez(here / f"samples_{index}.npz", nfe=np.full(size, 16 + 4 * index), **times)
        Image.new("RGB", (2000, 1000), "red").save(here / "samples.png")
        Image.new("L", (64, 32)).save(here / "trajectory.png")
    with tensorboardX.SummaryWriter(str(workdir / "tensorboard")) as events:
        for step in range(10, 210, 10):
            events.add_scalar("training/loss", 10 / step, step)
    report_data.write(workdir)
    return workdir


@pytest.fixture(scope="module")
def page(workdir):
    return (workdir / "eval" / "report.html").read_text()


# --- from disk --------------------------------------------------------------------------------------------------------


def test_report_json(workdir):
    data = json.loads(
        (workdir / "eval" / "report.json").read_text(), parse_constant=pytest.fail
    )  # No NaN.
    first, second = data["checkpoints"]
    assert (first["number"], second["number"]) == (1, 2)
    assert data["unfinished"] == ["checkpoint_10"]
    assert first["results"]["bpd"]["solver_error"] is None
    assert first["sampling"] == {
        "nfe": {"mean": pytest.approx(208 / 12), "least": 16, "most": 20},
        "images_per_second": 2.0,  # Of the second round: the first one compiled.
        "compilation_included": False,
    }
    assert first["pictures"] == ["checkpoint_1/samples.png", "checkpoint_1/trajectory.png"]
    histogram = first["bpd_histogram"]
    of_images = np.arange(40) / 40 + 0.5  # The mean of both passes; one more image failed.
    assert sum(histogram["counts"]) == 40
    assert histogram["mean"] == pytest.approx(of_images.mean())
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((0.5, of_images.max()))
    assert data["curves"]["training"]["steps"] == list(range(10, 210, 10))
    assert data["config"]["data"]["dataset"] == HOSTILE
    names = [measure["name"] for measure in first["measures"]]
    assert names[:4] == [
        "held-out loss",
        "bits/dim, test images",
        "bits/dim, test images, bound",
        names[3],
    ]
    assert names[3:] == [
        f"{name} ({HOSTILE}-1a2b3c4d, n = 12)" for name in ("FD_n12", "KID", "precision", "recall")
    ]


def test_an_evaluation_of_less(workdir, tmp_path):
    """Without images, times, curves, config and environments the report says so, or says nothing."""
    here = tmp_path / "less" / "checkpoint_3"
    here.mkdir(parents=True)
    with pytest.raises(
        InputError, match="less holds no results of an evaluation; --mode=eval makes them"
    ):
        report_data.write(tmp_path, "less")
    (here / "results.json").write_text(
        json.dumps({"step": 5, "samples": {"images": 4, "nfe": 7.0}})
    )
    np.savez(here / "samples_0.npz", nfe=np.full(4, 7))
    page = report_data.write(tmp_path, "less").read_text()
    data = json.loads((tmp_path / "less" / "report.json").read_text())
    assert data["checkpoints"][0]["sampling"]["images_per_second"] is None
    for words in (
        "not measured",
        "no losses",
        "Not recorded",
        "0 fields",
        "an experiment without a config",
    ):
        assert words in page


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
    root = Path(report_data.__file__).parent
    said = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=root, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{files[0]}\n"
    assert [path.read_bytes() for path in files] == before


def test_the_speed_of_a_single_round_includes_its_compilation(tmp_path):
    np.savez(
        tmp_path / "samples_0.npz", nfe=np.ones(6), seconds=np.array([3.0]), first=np.array([True])
    )
    speed = report_data._sampling(tmp_path)
    assert (speed["images_per_second"], speed["compilation_included"]) == (2.0, True)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_are_those_that_tensorboard_reads(tmp_path):
    """Also after a restart that goes back, and with a file whose last event is cut off."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, stop, options in ((1, 9, {}), (6, 12, {"purge_step": 6})):
        with tensorboardX.SummaryWriter(
            str(tmp_path), filename_suffix=f".{start}", **options
        ) as events:
            for step in range(start, stop):
                events.add_scalar("training/loss", start + 1 / step, step)
                events.add_scalar("other", 0.0, step)
    (last,) = tmp_path.glob("*.6")
    last.rename(tmp_path / "events.out.tfevents.9999999999.vm.6")
    assert curves.read(tmp_path, "training/loss", "held_out/loss").keys() == {"training/loss"}
    found = curves.read(tmp_path, "training/loss")["training/loss"]
    events = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("training/loss")
    assert found.steps.tolist() == [event.step for event in events] == list(range(1, 12))
    assert found.values.tolist() == [event.value for event in events]
    whole = (tmp_path / "events.out.tfevents.9999999999.vm.6").read_bytes()
    (tmp_path / "events.out.tfevents.9999999999.vm.6").write_bytes(whole[:-80])
    assert curves.read(tmp_path, "training/loss")["training/loss"].steps.tolist() == list(
        range(1, 11)
    )


def test_thin_curves_keep_the_mean_and_lose_what_is_not_finite():
    curve = curves.Curve(np.arange(1000), np.sin(np.arange(1000.0)))
    thinned = curves.thin(curve, 50)
    assert len(thinned.steps) == len(thinned.values) == 50
    assert thinned.values.mean() == pytest.approx(curve.values.mean())
    assert curves.thin(
        curves.Curve(np.array([1, 2]), np.array([np.nan, 3.0])), 50
    ).steps.tolist() == [2]
    assert not len(curves.thin(curves.Curve(np.array([1]), np.array([np.nan])), 50).steps)


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.013, 0.0131), (-7, 2_345_678), (99.9, 100), (5, 5), (0, 0), (2, 3)]
)
def test_linear_axes(low, high):
    axis, snug = charts.linear_axis("", low, high), charts.linear_axis("", low, high, snug=True)
    assert axis.low <= low <= high <= axis.high
    assert 3 <= len(axis.ticks) <= 8
    assert (axis.fraction(axis.low), axis.fraction(axis.high)) == (0, 1)
    assert snug.fraction(low) == (0 if low < high else 0.5)
    assert len(snug.ticks) > 1
    assert all(0 <= snug.fraction(tick) <= 1 for tick in snug.ticks)


@pytest.mark.parametrize(("low", "high"), [(0.08, 0.5), (1, 10), (1e-4, 3e5), (7.3, 7.9)])
def test_logarithmic_axes(low, high):
    axis = charts.log_axis("", low, high)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert axis.fraction((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)


def test_charts_show_their_numbers():
    """Points and bars lie where the axes say; text is escaped."""
    lines = [charts.Line("a<b", [0, 50, 100], [0, 5, 10]), charts.Line("c", [0, 100], [10, 0])]
    root = ET.fromstring(charts.line_chart(lines, "t&t", "x", "y"))
    first, second = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in root.iter("polyline")
    )
    assert first[1] == pytest.approx(np.mean([first[0], first[2]], 0), abs=0.1)
    assert [y for _, y in second] == [first[2][1], first[0][1]]
    assert first[0][1] > first[2][1]  # y grows downwards.
    texts = [text.text for text in root.iter("text")]
    assert {"a<b", "c", "x", "y", "0", "100", "10"} <= set(texts)
    bars = [
        float(bar.get("height"))
        for bar in ET.fromstring(
            charts.histogram([1, 4, 2], [0, 1, 2, 3], "t", "x", "y", mean=1.6)
        ).iter("rect")
    ]
    assert bars == pytest.approx(bars[0] * np.array([1, 4, 2]), abs=0.2)
    assert [charts.number(x) for x in (0.05, 2.4, 1300, 650_000, 1_300_000)] == [
        "0.05",
        "2.4",
        "1300",
        "650k",
        "1.3M",
    ]


# --- the page ---------------------------------------------------------------------------------------------------------


class Outline(html.parser.HTMLParser):
    """Elements with their attributes, and text; fails where elements are not closed in order."""

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


def test_the_page(page):
    """Whole by itself, without scripts; all from outside is text; what is not text has a text."""
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    assert "script" not in tags
    assert sum(HOSTILE in text for text in outline.text) >= 4  # Title, heading, config, devices.
    for tag, attributes in outline.elements:
        links = [attributes[name] for name in ("src", "href") if name in attributes]
        assert all(link.startswith(("data:", "#checkpoint-")) for link in links), links
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\(|@import", page)
    assert (
        tags.count("svg") == page.count('<svg class="chart" role="img" ') == 5
    )  # Two by step, two histograms, losses.
    assert tags.count("h1") == 1
    text = " ".join(outline.text)
    assert "nan" not in text.replace(HOSTILE, "")
    for words in (
        "3.000 ± 0.012",
        "8.0 ± 1.0",
        "0.00120 ± 0.00040",
        "17 (16 to 20)",
        "checkpoint_10 is not finished",
    ):
        assert words in text
    assert "Classifier guidance, scale 4.0, to classes 3, 1 in turn." in text
    assert len(page) < 200_000  # The picture of 2000x1000 pixels is there, smaller.


def test_contrast():
    """Text at least 4.5 : 1 and lines of charts 3 : 1, light and dark (WCAG 2.1, 1.4.3 and 1.4.11)."""
    style = Path(report_data.__file__).with_name("report.css").read_text()
    schemes = re.findall(r":root \{.*?\}", style, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        for name, least in {
            "text": 4.5,
            "soft": 4.5,
            "link": 4.5,
            "series-0": 3,
            "series-1": 3,
        }.items():
            assert all(
                contrast(colours[name], colours[ground]) > least for ground in ("page", "card")
            )


def contrast(*colours):
    linear = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    channels = ([linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5)] for colour in colours)
    dark, light = sorted(float(np.dot(rgb, (0.2126, 0.7152, 0.0722))) for rgb in channels)
    return (light + 0.05) / (dark + 0.05)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, or what `playwright install chromium` brought."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        found = found or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip(
                "no Chromium here: `playwright install chromium` or the system's package brings it"
            )
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_a_browser_shows_the_page(workdir, browser, width, scheme):
    """Without errors or requests, no wider than the window, though it is full of long words; pictures are there."""
    said, asked = [], []
    page = browser.new_page(
        viewport={"width": width, "height": 740}, is_mobile=width < 500, color_scheme=scheme
    )
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.split(":")[0]))
    page.goto((workdir / "eval" / "report.html").as_uri())
    page.locator("summary").click()  # The config, unfolded.
    assert page.locator("details table").is_visible()
    assert (
        page.evaluate("innerWidth") == width
    )  # On a phone that is so by the viewport's meta element.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    size = "text.ownerSVGElement.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)"
    assert (
        page.evaluate(
            f"Math.min(...[...document.querySelectorAll('svg text')].map(text => {size}))"
        )
        > 9
    )  # pixels
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert said == []
    assert asked == ["file"]
    page.close()
