"""Where config files are: in the current folder, or beside this code."""

from __future__ import annotations

import difflib
from pathlib import Path

from errors import InputError

ROOT = Path(__file__).parents[1]


def find(path: str) -> str:
    """Return the path of a config file, which may be relative to the folder of this code.

    A file in the current folder comes first. An installed package so provides its experiments in
    any folder, as in --config=configs/vp/cifar10_ddpmpp_continuous.py.

    Raises InputError if it is in neither.
    """
    here = Path(path)
    if here.exists():
        return path
    if (ROOT / here).is_file():
        return str(ROOT / here)
    experiments = [str(each.relative_to(ROOT)) for each in (ROOT / "configs").glob("*/**/*.py")]
    close = difflib.get_close_matches(path, experiments, 3, cutoff=0.8)
    hint = f"Did you mean {' or '.join(sorted(close))}?" if close else "configs/ has experiments."
    raise InputError(f"The config file {path} does not exist. {hint}")
