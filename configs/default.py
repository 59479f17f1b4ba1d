"""The default config, which each experiment's file changes, and its completion.

`fields.py` holds the defaults. In all config files, "the paper" and its tables and figures are
those of Song et al. (ICLR 2021, arXiv:2011.13456).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from configs.fields import ABSENT, FIELDS
from options import AnyOf, Entries, Sequence

Config = ml_collections.ConfigDict

COMPLETED_MODEL_FIELDS = (  # Official configs lack them.
    *("class_dropout", "dtype", "ema_ramp", "ema_stds"),
    *("parameterization", "sigma_data"),
)
PATHS = (
    *("data.path", "data.tfrecords_path", "eval.inception_path", "eval.stats_path"),
    *("restore.input", "restore.mask"),
)
"""The fields that may name files of a computer."""


def get_default_config() -> Config:
    """Return a config with every field that has a default."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        if field.default is not ABSENT:
            _set(config, name, field.default)
    return config


def from_json(fields: Mapping[str, Any]) -> Config:
    """Return the config of a config.json, whose fields can be set on the command line.

    JSON has lists in place of tuples.
    """
    config = ml_collections.ConfigDict()
    for name, leaf in traverse_util.flatten_dict(dict(fields), sep=".").items():
        is_tuple = name in FIELDS and isinstance(FIELDS[name].domain, (Sequence, Entries))
        _set(config, name, tuple(leaf) if is_tuple and isinstance(leaf, list) else leaf)
    return config


def without_paths(config: Config) -> Config:
    """Return a copy in which the fields that may name files have their defaults, to publish it."""
    copied = config.copy_and_resolve_references()
    for name in PATHS:
        section, _, key = name.rpartition(".")
        if key in copied.get(section, ()):
            default = FIELDS[name].default
            copied[section][key] = "" if default is ABSENT else default
    return copied


def _set(config: Config, name: str, value: Any) -> None:
    """Set a field, and make its section if there is none."""
    if name in FIELDS and isinstance(FIELDS[name].domain, AnyOf):
        # ml_collections otherwise fixes the type of the first value.
        value = ml_collections.FieldReference(value, field_type=object)
    section, _, key = name.rpartition(".")
    if section and section not in config:
        config[section] = ml_collections.ConfigDict()
    (config[section] if section else config)[key] = value


def complete(config: Config) -> Config:
    """Return a locked copy with default values for missing fields.

    Fields of `model` are left out, except those in COMPLETED_MODEL_FIELDS: a network that lacks
    one of its options has its own default for it. Two equal sides of images become one integer.
    """
    fields, defaults = config.to_dict(), get_default_config().to_dict()
    for section, values in defaults.items():
        if section == "model":
            completed = {name: values[name] for name in COMPLETED_MODEL_FIELDS}
            fields["model"] = completed | fields.get("model", {})
        elif isinstance(values, dict):
            fields[section] = values | fields.get(section, {})
        else:
            fields.setdefault(section, values)
    fields["data"]["image_size"] = _canonical_size(fields["data"]["image_size"])
    return ml_collections.ConfigDict(fields).lock()


def _canonical_size(size: Any) -> Any:
    """Return the only form of data.image_size that results are compared by.

    A pair of equal sides is an integer, and a list, as JSON has it, a tuple.
    """
    if not isinstance(size, (list, tuple)):
        return size
    return size[0] if len(size) == 2 and size[0] == size[1] else tuple(size)
