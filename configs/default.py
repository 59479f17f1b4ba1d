"""The default config, which each experiment's file changes; its completion; configs from files.

In configs, "the paper" is Song et al. (ICLR 2021, arXiv:2011.13456).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_collections

from configs.fields import ABSENT, FIELDS, INERT, Field
from errors import SHORT, InputError, nearest, printable
from options import AnyOf, Entries, Sequence, is_data

Config = ml_collections.ConfigDict

ROOT = Path(__file__).parents[1]
SECTIONS = frozenset(name.partition(".")[0] for name in (*FIELDS, *INERT) if "." in name)
REMOVED = {"eval.dequantization", "training.dequantizer_iters"}
"""Fields of version 0.6, in which sampling.num_steps had no effect on predictor and corrector."""
COMPLETED_MODEL_FIELDS = (  # Official configs lack them.
    *("class_dropout", "dtype", "ema_ramp", "ema_stds"),
    *("parameterization", "sigma_data"),
)


def get_default_config() -> Config:
    """Return a config with every field that has a default."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        if field.default is not ABSENT:
            set_field(config, name, field.default, field)
    return config


def complete(config: Config) -> Config:
    """Return a locked copy with default values for missing fields.

    A network has its own defaults: of `model`, only COMPLETED_MODEL_FIELDS are completed. Two equal
    sides of images become one integer.
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
    size = fields["data"]["image_size"]
    if isinstance(size, (list, tuple)):
        equal = len(size) == 2 and size[0] == size[1]
        fields["data"]["image_size"] = size[0] if equal else tuple(size)
    return ml_collections.ConfigDict(fields).lock()


def from_json(content: Any, *, known_only: bool = False) -> Config:
    """Return the config of a file, whose fields can be set on the command line; JSON has no tuples.

    Raises InputError if the content is not sections of fields, which are values or lists of values,
    and for an unknown field, which `known_only` leaves out.
    """
    config, known = ml_collections.ConfigDict(), dict(FIELDS.items())  # Its look-ups are slow.
    for name, leaf in _flat(content).items():
        if name not in known and name not in INERT:
            if known_only:
                continue
            hint = " If a config file of yours adds it, name that file: --config=FILE."
            raise InputError(unknown_field(name, leaf) + hint)
        entries = leaf if isinstance(leaf, (list, tuple)) else (leaf,)
        if any(isinstance(each, (dict, list, tuple)) for each in entries):
            raise InputError(f"{name} = {SHORT.repr(leaf)} must be a value or a list of values.")
        field = known.get(name)
        is_tuple = field is not None and isinstance(field.domain, (Sequence, Entries))
        set_field(config, name, tuple(leaf) if is_tuple and isinstance(leaf, list) else leaf, field)
    return config


def _flat(content: Any) -> dict[str, Any]:
    """Return the fields of a file by their names on the command line; see `from_json`."""
    if not isinstance(content, dict):
        raise InputError(f"it is {SHORT.repr(content)} instead of sections of fields.")
    fields: dict[str, Any] = {}
    for section, values in content.items():
        if "." in section:  # Only this function joins names.
            raise InputError(unknown_field(section, values))
        if section not in SECTIONS:
            fields[section] = values
        elif isinstance(values, dict):
            fields |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            raise InputError(f"{section} = {SHORT.repr(values)} must be a section of fields.")
    if REMOVED & fields.keys() and fields.get("sampling.method", "pc") == "pc":
        fields.pop("sampling.num_steps", None)
    return {name: value for name, value in fields.items() if name not in REMOVED}


def unknown_field(name: Any, value: Any) -> str:
    """Return the message about a field that does not exist."""
    name = printable(name)[:100]
    hint = nearest(name, FIELDS) or " docs/configuration.md lists all."
    return f"{name} = {SHORT.repr(value)} is not a known field.{hint}"


def not_data(config: Config) -> dict[str, Any]:
    """Return the fields that name code or other files, with their values.

    Only the command line and a config file may set them; `loading` refuses them in other files.
    """
    found = {}
    for name, field in FIELDS.items():
        section, _, key = name.rpartition(".")
        part = config.get(section, {}) if section else config
        if key in part and not is_data(field.domain, part[key]):
            found[name] = part[key]
    return found


def reset(config: Config, names: Iterable[str]) -> Config:
    """Return a copy in which fields have their defaults, or '' in place of none."""
    copied = config.copy_and_resolve_references()
    for name in names:
        field = FIELDS[name]
        set_field(copied, name, "" if field.default is ABSENT else field.default, field)
    return copied


def set_field(config: Config, name: str, value: Any, field: Field | None) -> None:
    """Set a field, and make its section if there is none."""
    if field is not None and isinstance(field.domain, AnyOf):
        # ml_collections otherwise fixes the type of the first value.
        value = ml_collections.FieldReference(value, field_type=object)
    section, _, key = name.rpartition(".")
    if section and section not in config:
        config[section] = ml_collections.ConfigDict()
    (config[section] if section else config)[key] = value


def find_file(path: str) -> str:
    """Return the path of a config file, in the current folder or else beside this code.

    Raises InputError if it is in neither.
    """
    if Path(path).exists():
        return path
    if (ROOT / path).is_file():
        return str(ROOT / path)
    experiments = [str(each.relative_to(ROOT)) for each in (ROOT / "configs").glob("*/**/*.py")]
    hint = nearest(path, experiments) or " configs/ has experiments."
    raise InputError(f"The config file {path} does not exist.{hint}")


def find_network(path: str) -> str:
    """Return a path, or that of a network of zoo/ if nothing of this name exists.

    "digits_vp" and "zoo/digits_vp.safetensors" so name the same file in any folder.
    """
    name = path.removeprefix("zoo/").removesuffix(".safetensors")
    network = ROOT / "zoo" / f"{name}.safetensors"
    return str(network) if network.is_file() and not Path(path).exists() else path


def nearest_network(path: str | Path) -> str:
    """Return `errors.nearest` of the networks of zoo/."""
    return nearest(path, [each.stem for each in ROOT.glob("zoo/*.safetensors")])
