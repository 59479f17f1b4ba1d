"""The documentation: generated pages are current; links, config fields and paths exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.fields import FIELDS, INERT
from tests.test_architecture import imports

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
FLAG = re.compile(r"--(?:no)?config\.(\w+(?:\.\w+)?)")
PYTHON_FILE = re.compile(r"`((?:[a-z_]+/)*[a-z_0-9]+\.py)`")
EXTERNAL = ("https://", "http://", "../../actions/")
HISTORY = "CHANGELOG.md"  # Names files of earlier versions.


def test_table_of_modules():
    """The page lists each module once, above all modules that it imports."""
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    names = re.findall(r"(\w+)(?:/|\.py)`", " ".join(rows))
    assert sorted(names) == sorted(imports())
    for i, name in enumerate(names):
        assert imports()[name] <= set(names[i:]), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_exists(page):
    """Files that links have as targets, config fields, and Python files."""
    text = page.read_text()
    links = [each for each in LINK.findall(text) if not each.startswith(EXTERNAL)]
    assert [each for each in links if not (page.parent / each).exists()] == []
    if page.name != HISTORY:
        assert set(FLAG.findall(text)) <= {*FIELDS, *INERT, "FIELD"}
        folders = (ROOT, ROOT / "configs", ROOT / "models")
        for name in PYTHON_FILE.findall(text):
            assert any((folder / name).exists() for folder in folders), name


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_index_is_complete():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in ROOT.glob(f"docs/{pattern}")}
    assert pages - {"README.md"} <= set(LINK.findall(index))
