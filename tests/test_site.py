"""The documentation site: `make docs` builds it without warnings, its links have targets, it fits
a phone, and it needs no other host."""

from __future__ import annotations

import functools
import html.parser
import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import score_sde

ROOT = Path(__file__).parents[1]
LOADING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
MARKUP = (":param", ":raises", "Args:", "\\*", "\\|", "jaxlib", "<function", "<class")
CUT_OFF = """[...document.querySelectorAll('.content *')].filter(element => {
    const box = element.closest('.table-wrapper, pre, math') || element;
    return box.getBoundingClientRect().right > innerWidth + 1;
}).map(element => element.outerHTML.slice(0, 80))"""
"""JavaScript: elements that the window cuts off, although no parent lets them scroll."""


class Page(html.parser.HTMLParser):
    """The ids, the targets of links, the files that are loaded, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loaded, self.text = set(), [], [], ""
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get(LOADING.get(tag)):
            self.loaded.append(values[LOADING[tag]])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built by the command of `make docs`."""
    for name in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(name, reason=f"{name} is not installed (requirements-dev.txt)")
    folder = tmp_path_factory.mktemp("site")
    recipe = subprocess.check_output(["make", "-n", "docs", f"SITE={folder}"], cwd=ROOT, text=True)
    (line,) = [line for line in recipe.splitlines() if "-m sphinx" in line]
    assert "--fail-on-warning" in line
    command = [sys.executable, *shlex.split(line)[1:]]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "GITHUB_REPOSITORY": "owner/name"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    """The parsed pages by their path in the site."""
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


@pytest.mark.long
def test_contents(site, pages):
    """All pages, the stored outputs of notebooks, formulas as MathML, and the Python API.

    Files and anchors that links name exist; nothing is loaded from another host.
    """
    wrong = []
    for name, page in pages.items():
        for target in page.links + page.loaded:
            parts = urlsplit(urljoin(name, target))
            path, anchor = unquote(parts.path) or name, unquote(parts.fragment)
            found = (site / path).is_file() and anchor in {"", *getattr(pages.get(path), "ids", ())}
            if parts.scheme or parts.netloc:
                found = target not in page.loaded and parts.scheme in ("http", "https")
            wrong += [] if found else [f"{name}: {target}"]
    assert wrong == []

    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.ipynb")]
    names = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources}
    assert len(names) == len(sources)
    assert names <= pages.keys()
    assert pages["index.html"].text == pages["README.html"].text
    assert "https://github.com/owner/name" in pages["index.html"].links
    for path in ROOT.glob("docs/*.ipynb"):
        cells, page = json.loads(path.read_text())["cells"], pages[f"docs/{path.stem}.html"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        shown = sum("_images/" in name for name in page.loaded)
        assert shown == sum("image/png" in output.get("data", ()) for output in outputs)
        for output in outputs:
            assert " ".join("".join(output.get("text", "")).split()) in page.text
        assert "\\mathcal" not in page.text.replace(" ", "")

    reference = {name: page for name, page in pages.items() if "/reference/" in name}
    ids = set().union(*(page.ids for page in reference.values()))
    public = set(score_sde.__all__) - {"operators"}
    assert [each for each in public if not ids & {f"score_sde.{each}", f"sde_lib.{each}"}] == []
    assert [(n, m) for n, page in reference.items() for m in MARKUP if m in page.text] == []


@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_all_pages(site, pages, browser, width):
    """Without errors, missing pictures or requests to other hosts, and no wider than the window."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, messages, requests = f"http://127.0.0.1:{server.server_port}/", [], []
        page = browser.new_page(viewport={"width": width, "height": 844}, is_mobile=width < 500)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # The site has none.
        for name in sorted(pages):
            page.goto(f"{address}{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.evaluate(CUT_OFF) == [], name
            assert page.evaluate("[...document.images].every(each => each.naturalWidth > 0)"), name
        page.goto(f"{address}search.html?q=denoising_score_matching")
        page.locator("#search-results a[href*='reference/losses.html']").first.wait_for()
        assert messages == []
        assert [url for url in requests if not url.startswith((address, "data:"))] == []
        page.close()
        server.shutdown()
