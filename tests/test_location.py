"""Config files are found in the current folder, or beside the code."""

from __future__ import annotations

import subprocess
import sys

import score_sde as ss
from commands import command_line
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
    # On the command line, only the path in --config changes; a text after a colon is kept.
    others = ["main.py", f"--target={PUBLISHED}", "--mode=train", "--config.seed=1"]
    assert command_line.with_stored_config(others) == others
    for end in ("", ":a:b"):
        parsed = command_line.with_stored_config(["main.py", f"--config={PUBLISHED}{end}"])
        assert parsed == ["main.py", f"--config={found}{end}"]
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
    parsed = command_line.with_stored_config(["main.py", "--source=digits_vp", "--mode=sample"])
    assert f"--source={ROOT / path}" in parsed
    (tmp_path / "digits_vp").mkdir()  # What the current folder has comes first.
    assert find_network("digits_vp") == "digits_vp"
    refused("digits_vp holds no model", ss.load, "digits_vp")


def test_version():
    assert f"\n## {ss.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    command = [sys.executable, ROOT / "main.py", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert (shown.stdout.split(), shown.stderr) == ([ss.__version__], "")
