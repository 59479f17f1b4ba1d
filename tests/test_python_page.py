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
    for page in pages:
        for code in documented.snippets(ROOT / page):
            compile(code, page, "exec")
    others = ("extending", "metrics", "own_images")
    assert pages == {*API, *(f"docs/{name}.md" for name in others)}


def execute(page):
    """The names after the snippets of a page. Of Hamiltonian Monte Carlo, few steps are done."""
    namespace: dict = {}
    few = "num_warmup=2, num_samples=2"
    for code in documented.snippets(ROOT / page):
        exec(code.replace("num_warmup=100, num_samples=200", few), namespace)
    return namespace


@pytest.mark.long
@pytest.mark.parametrize("page", API)
def test_code_runs(page, tmp_path, monkeypatch):
    """In one namespace, with a workdir `demo` of two training steps."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    training.train(tiny.config(), "demo")
    namespace = execute(page)
    assert len(namespace["samples" if page in API[:1] else "restored"]) >= 8
    if page == "docs/python.md":
        assert namespace["found"].kind == "calibrated"


@pytest.mark.long
def test_the_code_about_own_images(tmp_path, monkeypatch):
    """After two steps samples are noise: far from the data, and from each training image."""
    monkeypatch.chdir(tmp_path)
    training.train(tiny.config(**{"data.dataset": "few_digits"}), "mine")
    namespace = execute("docs/own_images.md")
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
    execute("docs/metrics.md")
    assert float(capsys.readouterr().out) == pytest.approx(25)
