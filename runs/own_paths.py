"""The paths that commands of this user have written into the configs of folders.

A folder may come from others, and its config.json name any file. A path in it is therefore used
only if a command of this user wrote it into the config of this folder. Then there is an empty file
in ~/.cache/score_sde/paths, named after a hash of the folder, the field and the path. No folder can
bring such a file along. One that was moved, or comes from another computer, has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from configs.default import Config, not_data
from configs.fields import FIELDS
from errors import cache_folder
from options import FilePath

MARKS = cache_folder() / "score_sde" / "paths"


def remember(folder: str | Path, config: Config) -> None:
    """Mark the paths of a config that is written into a folder, unless the cache is read-only."""
    for name, path in not_data(config).items():
        if not isinstance(FIELDS[name].domain, FilePath):
            continue  # Code is never taken from a folder.
        with contextlib.suppress(OSError):
            MARKS.mkdir(parents=True, exist_ok=True)
            _mark(folder, name, path).touch()


def is_own(folder: str | Path, name: str, path: str) -> bool:
    """Return whether `remember` has marked this path in the field `name` of a folder's config."""
    return _mark(folder, name, path).is_file()


def _mark(folder: str | Path, name: str, path: str) -> Path:
    text = json.dumps([os.path.realpath(folder), name, path])
    return MARKS / hashlib.sha256(text.encode()).hexdigest()
