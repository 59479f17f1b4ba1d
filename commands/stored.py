"""The config file by which `--config` reads the config of a workdir or a checkpoint file.

`command_line.py` passes `--config=DIR/config.json` on to this file. Without `--config`, it passes
the file to import, if that states a config, or the workdir. Overrides on the command line then
apply as to any config file.
"""

from __future__ import annotations

import sys

from configs.default import Config
from loading import load_config


def get_config(path: str) -> Config:
    """Return the config that `path` states, without code and files that are not its own.

    Raises InputError as `load_config` does.
    """
    names = (argument.lstrip("-").partition("=")[0] for argument in sys.argv)
    return load_config(path, {name.removeprefix("config.") for name in names})
