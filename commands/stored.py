"""The config file by which `--config` reads the config of a workdir or a checkpoint file.

`command_line.py` passes `--config=DIR/config.json` on to this file. Without `--config`, it passes
the file to import, if that states a config, or the workdir. Overrides on the command line then
apply as to any config file.
"""

from __future__ import annotations

from pathlib import Path

from configs.default import Config, from_json
from errors import InputError
from pretrained import WITH_CONFIG, read_config
from runs import CONFIG, stored_config


def get_config(path: str) -> Config:
    """Return the config of a workdir, its config.json, a .safetensors file, or EDM's .pkl.

    Raises InputError if there is none, or it cannot be read.
    """
    if path.endswith(WITH_CONFIG):
        return from_json(read_config(Path(path)))
    folder = Path(path).parent if Path(path).name == CONFIG else Path(path)
    stored = stored_config(folder)
    if stored is None:
        lack = f"has no {CONFIG} and no checkpoint" if folder.is_dir() else "does not exist"
        raise InputError(
            f"{folder} {lack}, so that it states no config. Name an experiment, such as "
            "--config=configs/vp/digits_ddpmpp_continuous.py, or another folder."
        )
    return from_json(stored.to_dict())
