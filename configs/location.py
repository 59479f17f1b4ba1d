"""Where config files are: in the current folder, or beside this code."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def find(path: str) -> str:
    """Return the path of a config file, which may be relative to the folder of this code.

    A file in the current folder comes first. An installed package so provides its experiments in
    any folder, as in --config=configs/vp/cifar10_ddpmpp_continuous.py. A path that exists in
    neither is returned as it is.
    """
    here = Path(path)
    return path if here.exists() or not (ROOT / here).is_file() else str(ROOT / here)
