"""Config files by path, with changed fields."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterable
from pathlib import Path

from configs.default import Config, complete
from errors import InputError

ROOT = Path(__file__).parents[1]


def load_config(path: str, overrides: Iterable[str] = ()) -> Config:
    """Load a config file and override fields, as in 'model.dropout=0.0'.

    Raises InputError for a file without a config, an unknown field and a value of the wrong type.
    """
    try:
        config = complete(runpy.run_path(path)["get_config"]())
    except (OSError, KeyError) as error:
        raise InputError(f"--config={path} is not a config file: {error}") from error
    for override in overrides:
        field, _, text = override.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--set={override} does not fit {path}: {' '.join(str(error).split())}."
            ) from error
    return config


def config_name(path: str) -> str:
    """Return the name of a config file in tables."""
    return path.removeprefix("configs/").removesuffix(".py")


def all_configs() -> list[str]:
    """Return the paths of the experiments in configs/."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
    return [path for path in found if path.count("/") > 1 and not path.endswith("__init__.py")]
