"""Parsing of the command line: the config of a workdir or a file, one-line errors, and notes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging

import errors
from errors import InputError

FLAGS = flags.FLAGS
WRONG_VALUE = re.compile(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): (?P<reason>.*)")
"""The messages of absl about a value that cannot be parsed."""
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)=?(.*)", re.DOTALL)
HELP = {"help", "helpshort", "helpfull", "helpxml", "?"}  # absl ends these with code 1.
WITH_TRACEBACK = "Error whilst parsing config file"  # config_flags repeats errors so.
STORED = Path(__file__).with_name("stored.py")  # the config file that reads a config.json


def with_stored_config(argv: list[str]) -> list[str]:
    """Return the arguments with the config that a workdir was made with, if it is asked for.

    That is, for --config=DIR/config.json, and without --config. A .safetensors or .pkl file to
    import states its config as well. Paths are replaced by those that `find_file` and
    `find_network` find. Raises InputError for a path that is a URL, a source that does not exist,
    and a config that is another file.
    """
    # These imports take seconds, so that the flags that do not need them are parsed before.
    from configs.default import find_file, find_network
    from pretrained import WITH_CONFIG
    from runs import CONFIG

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "workdir", "source", "target"):
        parser.add_argument(f"--{name}", f"-{name}", nargs="?")
    found, others = parser.parse_known_args(argv[1:])
    for name, path in vars(found).items():
        if path and (path.startswith("~") or "://" in path):
            setattr(found, name, str(errors.expand_home(path, f"--{name}")))
    config, given = found.config, found.source
    if given:
        found.source = find_network(given)
        if config is None and not Path(found.source).exists():
            raise InputError(
                f"--source={given} does not exist. It must be a checkpoint file or folder, or a "
                "network of zoo/, such as digits_vp."
            )
    if config is None and (found.source or "").endswith(WITH_CONFIG):
        config = f"{STORED}:{found.source}"
    elif config is None and found.workdir:
        config = f"{STORED}:{found.workdir}"
    elif config and Path(config).name == CONFIG:
        config = f"{STORED}:{config}"
    elif config:
        path, *text = config.split(":", 1)  # ml_collections passes the text to get_config.
        if not path.endswith(".py"):
            raise InputError(
                f"--config={config} must be a Python file (.py), which is executed, or the "
                f"{CONFIG} of a workdir, which is not."
            )
        config = ":".join([find_file(path), *text])
    known = vars(found) | {"config": config}
    flags_of_config = [f"--{name}={value}" for name, value in known.items() if value is not None]
    return [*argv[:1], *flags_of_config, *others]


def parse_flags(argv: list[str], check: Callable[[list[str]], None]) -> list[str]:
    """Parse flags; a wrong one, an unreadable config or an unknown field is a one-line error.

    First those are parsed that are not of the config, whose file takes seconds to import. `check`
    raises InputError for values that are not allowed; it receives the positional arguments.
    """
    logging.set_verbosity(logging.ERROR)  # `main` sets it for all other messages.
    given = list(argv)
    try:
        check(FLAGS(_without_config(FLAGS.read_flags_from_files(argv, force_gnu=False))))
        argv = with_stored_config(argv)
        sys.argv[:] = argv  # config_flags reads the fields of the config from there.
        return FLAGS(argv)
    except SystemExit:
        if HELP.isdisjoint(each.lstrip("-").partition("=")[0] for each in argv):
            raise
        sys.exit(0)
    except Exception as error:  # A config file may raise anything.
        cause: BaseException | None = error
        while cause:
            if isinstance(cause, InputError) and not str(cause).startswith(WITH_TRACEBACK):
                errors.fail(str(cause))
            cause = cause.__context__
        errors.fail(_explain(error, given))


def _without_config(argv: list[str]) -> list[str]:
    """Return the arguments that do not set the config or its fields."""
    kept, may_be_value = [], False
    for argument in argv:
        of_config = re.match(r"--?(no)?config([.=]|$)", argument) is not None
        if not of_config and not (may_be_value and not argument.startswith("-")):
            kept.append(argument)
        may_be_value = of_config and "=" not in argument
    return kept


def _explain(error: Exception, argv: list[str]) -> str:
    """Return a message for an error that absl, ml_collections or a config file raised."""
    reason = " ".join(str(error).split()) or "no message"
    value = WRONG_VALUE.match(reason)
    is_field = value is not None and value["name"].startswith("config.")
    if value and not is_field and value["name"] in FLAGS:
        kind = {"int": "an integer", "bool": "true or false"}.get(FLAGS[value["name"]].flag_type())
        return f"--{value['name']}={value['value']} must be {kind or 'another value'}."
    if isinstance(error, flags.Error) and not is_field:
        return f"{reason.rstrip('. ?')}. docs/usage.md lists the flags."
    from configs.default import unknown_field  # As above.
    from configs.fields import ABSENT, FIELDS

    if value and value["name"].removeprefix("config.") in FIELDS:
        name = value["name"].removeprefix("config.")
        return f"{name} = {value['value']!r} must be {FIELDS[name].domain.describe()}."
    if isinstance(error, (AttributeError, KeyError)):  # Of a field that the config lacks.
        for override in filter(None, map(OVERRIDE.fullmatch, argv)):
            name, text = override.groups()
            if name not in FIELDS:
                return unknown_field(name, text)
            if FIELDS[name].default is ABSENT and name.split(".")[-1] in reason:
                return (
                    f"--config.{name}: this config has no field {name}. The command line changes "
                    "fields; set it in a config file (docs/extending.md)."
                )
    return f"--config cannot be read: {type(error).__name__}: {reason}"
