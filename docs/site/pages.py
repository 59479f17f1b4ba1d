"""Extension of Sphinx: the home page, and formulas that need no script."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

NAVIGATION = Path(__file__).with_name("navigation.md")
BADGE = re.compile(r"^\[!\[.*\]\(\.\./\.\./actions/.*\n", re.M)  # Only GitHub has its target.
OPERATOR = re.compile(r"(\\(?:exp|log|max|min)) ")


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the navigation to the text of the README."""
    if name == app.config.root_doc:
        source[0] = BADGE.sub("", source[0]) + NAVIGATION.read_text()


def write_home(app: Sphinx, error: Exception | None) -> None:
    """Copy the page of the README to index.html."""
    if error is None:
        shutil.copy(app.outdir / f"{app.config.root_doc}.html", app.outdir / "index.html")


def write_formula(writer: HTML5Translator, node: nodes.Element) -> None:
    """Write TeX as MathML, which browsers show without a script or fonts of another host."""
    formula = OPERATOR.sub(r"\1\\,", node.astext())  # A thin space, as TeX has it.
    writer.body.append(tex2mathml(formula, as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_home)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    return {"parallel_read_safe": True}
