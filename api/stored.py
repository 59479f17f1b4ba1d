"""The config that a workdir or a checkpoint file states, as data: it names no code."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from configs.default import SHORT, Config, from_json, not_data, reset
from configs.validation import check_domains
from errors import InputError, naming, printable
from factory import choices, validated
from pretrained import WITH_CONFIG, read_config
from runs import CONFIG, own_paths, stored_content


def load_config(path: str | Path, given: Collection[str] = ()) -> Config:
    """Return the config of a workdir, its config.json, a .safetensors file, or EDM's .pkl.

    A field that names code or another file gets its default, which is printed unless the field is
    `given` on the command line. Only paths that a command of this user wrote into the config of
    this workdir are kept (`runs.own_paths`).

    Raises InputError, naming the file, if there is no config, or it is damaged or invalid.
    """
    path = Path(path)
    folder = path.parent if path.name == CONFIG else path
    if path.name.endswith(WITH_CONFIG):
        folder, found = None, (str(path), read_config(path))
    else:
        found = stored_content(folder)
    if found is None:
        lack = f"has no {CONFIG} and no checkpoint" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {lack}, so that it states no config. Name an experiment, such as "
            "--config=configs/vp/digits_ddpmpp_continuous.py, or another folder."
        )
    source, content = found
    with naming(source):
        config = from_json(content)
        for problem in check_domains(config, choices().names):
            raise InputError(problem)
        refused = {
            name: value
            for name, value in not_data(config).items()
            if folder is None or not own_paths.is_own(folder, name, value)
        }
        config = from_json(validated(reset(config, refused), num_devices=1).to_dict())
    shown = [name for name in refused if name not in given]
    if shown:
        values = ", ".join(f"{name} = {SHORT.repr(refused[name])}" for name in shown)
        flags = " ".join(f"--config.{name}=..." for name in shown)
        print(
            f"NOTE: not used from {printable(source)}: {values}. A config in a file may name "
            f"neither code nor other files; to set them: {flags}",
            flush=True,
        )
    return config
