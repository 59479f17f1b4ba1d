"""The page of a report: its markup, and how a browser shows it."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

import report
from report import charts
from tests import evaluated

VOID = {"meta", "link", "img", "!doctype"}

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


@pytest.fixture(scope="module")
def page(reported):
    return (reported / "eval" / "report.html").read_text()


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
    assert (
        sum(evaluated.HOSTILE in text for text in outline.text) >= 4
    )  # title, heading, config, devices
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


def test_ids_are_unique_and_references_exist(page):
    elements = Outline(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([\w-]+)', page)
    assert set(references) <= set(ids)


def test_contrast():
    """Text has a contrast of 4.5 : 1 and lines of charts of 3 : 1 (WCAG 2.1, 1.4.3 and 1.4.11)."""
    style = (Path(report.__file__).parent / "style.css").read_text()
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


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_a_browser_shows_the_page(reported, browser, width, scheme):
    """Without errors or requests, in the colour scheme, and no wider than the window."""
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
    assert messages == []
    assert requests == ["file"]
    page.close()
