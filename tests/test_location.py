"""Config files are found in the current folder, or beside the code."""

from __future__ import annotations

import pytest

import score_sde as ss
from commands import command_line
from configs import location
from errors import InputError

PUBLISHED = "configs/vp/digits_ddpmpp_continuous.py"


def test_published_configs_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert location.find(PUBLISHED) == str(location.ROOT / PUBLISHED)
    for path in ("configs/nothing.py", "configs/vp"):  # A folder is no config.
        with pytest.raises(InputError, match=f"{path} does not exist. configs/ has experiments"):
            location.find(path)
    with pytest.raises(InputError, match="Did you mean .*configs/vp/digits_ddpmpp_continuous.py"):
        location.find("configs/vp/digits_ddpmp_continuous.py")


def test_files_of_the_current_folder_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / PUBLISHED
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert location.find(PUBLISHED) == PUBLISHED


def test_flags(tmp_path, monkeypatch):
    """Only the path in --config changes; a text after a colon is kept."""
    monkeypatch.chdir(tmp_path)
    path = str(location.ROOT / PUBLISHED)
    others = ["main.py", f"--source={PUBLISHED}", "--mode=train", "--config.seed=1"]
    assert command_line.with_stored_config(others) == others
    for given, found in ((PUBLISHED, path), (f"{PUBLISHED}:a:b", f"{path}:a:b")):
        arguments = ["main.py", f"--config={given}"]
        assert command_line.with_stored_config(arguments) == ["main.py", f"--config={found}"]


def test_python_interface(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoint_1"):
        ss.load(config=PUBLISHED, checkpoint="checkpoint_1")
    with pytest.raises(InputError, match=r"configs/nothing\.py does not exist"):
        ss.load(config="configs/nothing.py", checkpoint="checkpoint_1")
