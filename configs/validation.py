"""Validation of a config: once, for every mode, before anything is built or written.

Each field must lie in its domain (`fields.py`). Beyond that, `rules.py` checks the rules that
connect fields. All problems are reported together, each with its field, its value and what is
allowed.
"""

from __future__ import annotations

from typing import Any, cast

from flax import traverse_util

from configs.default import complete, unknown_field
from configs.fields import FIELDS, INERT
from configs.rules import MODES, SECTIONS, Config, Problems, check_batches
from errors import InputError
from options import SHORT


def validated(config: Config, num_devices: int, mode: str = "") -> Config:
    """Return the complete config, locked.

    Args:
      config: any config; missing fields get their defaults.
      num_devices: devices that share each batch.
      mode: the mode whose own rules apply as well, such as "restore".

    Raises:
      InputError: with all problems, one a line.
    """
    config = complete(config)
    problems = list(check_domains(config))
    if not problems:  # Rules that connect fields presuppose that each one is valid.
        for section in SECTIONS:
            problems += section(config)
        problems += check_batches(config, num_devices)
        if mode in MODES:
            problems += MODES[mode](config, num_devices)
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"the config has {len(problems)} problems:\n  " + "\n  ".join(problems))
    return config


def check_domains(config: Config) -> Problems:
    """Yield a problem for each unknown field and each value outside of its field's domain."""
    fields = dict(FIELDS.items())
    flat = traverse_util.flatten_dict(config.to_dict(), keep_empty_nodes=True, sep=".")
    for name, leaf in cast(dict[str, Any], flat).items():
        value: Any = {} if leaf is traverse_util.empty_node else leaf
        if name in INERT:
            continue
        if name not in fields:
            yield unknown_field(name, value)
        elif not fields[name].domain.allows(value):
            yield f"{name} = {SHORT.repr(value)} must be {fields[name].domain.describe()}."
