"""The config file by which `--config` reads the config.json of a workdir.

`main.py` passes `--config=DIR/config.json`, and the workdir if there is no `--config`, on to this
file, so that overrides on the command line apply as to any other config file.
"""

from __future__ import annotations

from pathlib import Path

from configs.default import Config, from_json
from errors import InputError
from workdir.claims import CONFIG, stored_config


def get_config(path: str) -> Config:
    """Return the config of a workdir, or of its config.json.

    Raises InputError if there is none, or it cannot be read.
    """
    folder = Path(path).parent if Path(path).name == CONFIG else Path(path)
    stored = stored_config(folder)
    if stored is None:
        raise InputError(
            f"{folder} has no {CONFIG} and no checkpoint, so that it states no config. Name an "
            "experiment, such as --config=configs/vp/digits_ddpmpp_continuous.py."
        )
    return from_json(stored.to_dict())
