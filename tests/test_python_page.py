"""The code of the documentation's pages runs as it is written, in its order."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import training
from tests import documented, tiny
from tests.documented import PAGES, ROOT

API = ["docs/python.md", "README.md"]


def test_no_page_is_left_out():
    pages = {str(page.relative_to(ROOT)) for page in PAGES if documented.snippets(page)}
    others = ("extending", "metrics", "own_images")
    assert pages == {*API, *(f"docs/{name}.md" for name in others)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_are_python(page):
    for code in documented.snippets(page):
        compile(code, str(page), "exec")


@pytest.mark.long
@pytest.mark.parametrize("page", API)
def test_code_runs(page, tmp_path, monkeypatch):
    """In one namespace, with a workdir `demo` of two training steps."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    training.train(tiny.config(), "demo")
    namespace: dict = {}
    for code in documented.snippets(ROOT / page):
        if "import numpyro" not in code:
            exec(code, namespace)
    assert len(namespace["samples" if page in API[:1] else "restored"]) >= 8
    if page == "docs/python.md":
        assert namespace["found"].kind == "calibrated"


@pytest.mark.long
def test_the_code_about_own_images(tmp_path, monkeypatch):
    """After two steps samples are noise: far from the data, and from each training image."""
    monkeypatch.chdir(tmp_path)
    training.train(tiny.config(**{"data.dataset": "few_digits"}), "mine")
    namespace: dict = {}
    (code,) = documented.snippets(ROOT / "docs" / "own_images.md")
    exec(code, namespace)
    samples, test, train, n = (namespace[name] for name in ("samples", "test", "train", "n"))
    distance, nearest = namespace["sliced_distance"], namespace["nearest"]
    assert distance(samples, test) > 2 * distance(train[:n], test)
    assert nearest(samples).min() > nearest(test[:n]).max()
    assert nearest(train[:5]).tolist() == [0] * 5


def test_the_code_about_two_folders(tmp_path, monkeypatch, capsys):
    """The distance of Gaussians whose means are (0, 0) and (3, 4) is 25."""
    monkeypatch.chdir(tmp_path)
    for name, mean in (("A", [0.0, 0.0]), ("B", [3.0, 4.0])):
        np.savez(f"{name}.npz", mu=np.array(mean), sigma=np.eye(2))
    (code,) = documented.snippets(ROOT / "docs" / "metrics.md")
    exec(code, {})
    assert float(capsys.readouterr().out) == pytest.approx(25)
