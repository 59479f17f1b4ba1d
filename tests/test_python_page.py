"""The code of docs/python.md and of the README runs as it is written, in its order."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

import training
from tests import tiny

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    """In one namespace, with a workdir `demo` of two training steps."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    training.train(tiny.config(), "demo")
    namespace: dict = {}
    for code in BLOCK.findall((ROOT / page).read_text()):
        if "import numpyro" not in code:
            exec(code, namespace)
    assert len(namespace["answers"]) >= 8
    if page == "docs/python.md":
        assert namespace["found"].kind == "calibrated"
