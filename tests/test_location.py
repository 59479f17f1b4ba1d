"""Config files are found in the current folder, or beside the code."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import score_sde as ss
from configs.default import ROOT, find_file, find_network
from tests.refusal import refused

PUBLISHED = "configs/vp/digits_ddpmpp_continuous.py"
OTHERS = {
    "configs/nothing.py": "configs/nothing.py does not exist. configs/ has experiments",
    "configs/vp": "configs/vp does not exist. configs/ has experiments",  # A folder is no config.
    "configs/vp/digits_ddpmp_continuous.py": "Did you mean .*vp/digits_ddpmpp_continuous.py",
}


def test_published_configs_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = str(ROOT / PUBLISHED)
    assert find_file(PUBLISHED) == found
    for path, message in OTHERS.items():
        refused(message, find_file, path)
    for config, message in ((PUBLISHED, "checkpoint_1"), ("configs/nothing.py", "does not exist")):
        refused(message, ss.load, config=config, checkpoint="checkpoint_1")
    own = tmp_path / PUBLISHED  # Files of the current folder come first.
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert find_file(PUBLISHED) == PUBLISHED


def test_networks_of_the_zoo_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "zoo/digits_vp.safetensors"
    assert find_network("digits_vp") == find_network(path) == str(ROOT / path)
    assert find_network("no_such") == "no_such"
    assert ss.load("digits_vp").event_shape == (8, 8, 1)
    (tmp_path / "digits_vp").mkdir()  # What the current folder has comes first.
    assert find_network("digits_vp") == "digits_vp"
    refused("digits_vp holds no model", ss.load, "digits_vp")


def test_modules_have_the_names_of_the_installed_package():
    """They are those of the clone, not copies with registries of their own."""
    found = importlib.import_module("score_sde.configs.default")
    assert found.find_file is find_file
    assert (found.__name__, found.__spec__.name) == ("configs.default", "configs.default")
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        importlib.import_module("score_sde.no_such")


def test_version():
    assert f"\n## {ss.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    command = [sys.executable, ROOT / "main.py", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert (shown.stdout.split(), shown.stderr) == ([ss.__version__], "")
