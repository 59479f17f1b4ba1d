"""The default config, which each experiment's file changes, and its completion.

`fields.py` holds the defaults. In all config files, "the paper" and its tables and figures are
those of Song et al. (ICLR 2021, arXiv:2011.13456).
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs.domains import AnyOf
from configs.fields import ABSENT, FIELDS

Config = ml_collections.ConfigDict

COMPLETED_MODEL_FIELDS = ("class_dropout", "dtype", "ema_ramp")  # Official configs lack them.


def get_default_config() -> Config:
    """Return a config with every field that has a default."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        if field.default is ABSENT:
            continue
        default = field.default
        if isinstance(field.domain, AnyOf):  # ml_collections otherwise fixes the default's type.
            default = ml_collections.FieldReference(default, field_type=object)
        section, _, key = name.rpartition(".")
        if not section:
            config[key] = default
            continue
        if section not in config:
            config[section] = ml_collections.ConfigDict()
        config[section][key] = default
    return config


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
