"""The command line: flags by absl, and the config with the fields that it changes."""

from __future__ import annotations

import ast
import contextlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

import errors
from errors import InputError, nearest

if TYPE_CHECKING:  # These imports take seconds, so that flags are checked before.
    from configs.default import Config
    from options import Domain

FLAGS = flags.FLAGS
FIELD = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
WRONG_VALUE = re.compile(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): ")
"""The messages of absl about a value that cannot be parsed."""
HELP = {"help", "helpshort", "helpfull", "helpxml", "?"}  # absl ends these with code 1.
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse_flags(argv: list[str], check: Callable[[list[str]], None]) -> list[str]:
    """Parse flags; a wrong one is a one-line error. Return the program and fields of the config.

    Those are texts such as "training.batch_size=64". `check` raises InputError for values that are
    not allowed; it receives the positional arguments.
    """
    argv = ["--help" if each == "-h" else each for each in argv]
    ignored = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As in `--list | head`.
    try:
        others, fields = _split(FLAGS.read_flags_from_files(argv, force_gnu=False))
        check(FLAGS(others))
    except SystemExit:
        if HELP.isdisjoint(each.lstrip("-").partition("=")[0] for each in argv):
            raise
        sys.exit(0)
    except InputError as error:
        errors.fail(str(error))
    except flags.UnrecognizedFlagError as error:
        names = [*FLAGS]
        if "." in error.flagname:
            from configs.fields import FIELDS

            names = [f"config.{name}" for name in FIELDS]
        hint = nearest(error.flagname, names, "--{}")
        errors.fail(f"--{error.flagname} is not a known flag.{hint} --help lists the flags.")
    except flags.Error as error:
        reason = " ".join(str(error).split()).removeprefix("ERROR:: ")
        value = WRONG_VALUE.match(reason)
        if value and value["name"] in FLAGS:
            kinds = {"int": "an integer", "bool": "true or false"}
            kind = kinds.get(FLAGS[value["name"]].flag_type(), "another value")
            errors.fail(f"--{value['name']}={value['value']} must be {kind}.")
        errors.fail(f"{reason.rstrip('. ?')}. --help lists the flags.")
    signal.signal(signal.SIGPIPE, ignored)  # A training whose terminal is gone continues.
    return [argv[0], *fields]


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without those that set fields of the config, and these fields."""
    others, fields, needs_value = [], [], False
    for argument in argv:
        field = FIELD.fullmatch(argument)
        if needs_value and not argument.startswith("-"):
            fields[-1] = f"{fields[-1].rpartition('=')[0]}={argument}"
        elif field:
            off, name, text = field.groups()
            fields.append(f"{name}={text if text is not None else str(not off)}")
        else:
            others.append(argument)
        needs_value = field is not None and not field[1] and field[3] is None
    return others, fields


def read_config(fields: Sequence[str]) -> tuple[Config, set[str]]:
    """Return the config that flags name, with the values of `fields`, and the names of these.

    --config names it, or else a file to import that states its config, or the workdir. The config
    of a config.json or such a file names no code and no files. `FLAGS.source` becomes the path of
    a network of zoo/. Raises InputError for a URL, and for what does not exist or is not valid.
    """
    from configs.default import find_network, nearest_network
    from loading import load_config, read_config_file
    from pretrained import WITH_CONFIG
    from runs import CONFIG

    given = {name for name, _, _ in (each.partition("=") for each in fields)}
    for flag in ("config", "workdir", "source", "target"):
        path = FLAGS[flag].value or ""
        if path.startswith("~") or "://" in path:
            FLAGS[flag].value = str(errors.expand_home(path, f"--{flag}"))
    config, source = FLAGS.config, FLAGS.source
    if source:
        FLAGS.source = find_network(source)
        if config is None and not Path(FLAGS.source).exists():
            raise InputError(
                f"--source={source} does not exist. It must be a checkpoint file or folder, or a "
                f"network of zoo/, such as digits_vp.{nearest_network(source)}"
            )
    states_config = (FLAGS.source or "").endswith(WITH_CONFIG)
    if config is None:
        found = load_config(FLAGS.source if states_config else FLAGS.workdir, given)
    elif Path(config).name == CONFIG:
        found = load_config(config, given)
    else:
        found = read_config_file(config)
    return change(found, fields), given


def change(config: Config, fields: Sequence[str]) -> Config:
    """Set fields of a config to values, which `configs.validation` checks; return it."""
    from configs.default import set_field, unknown_field
    from configs.fields import ABSENT, FIELDS, INERT

    known = dict(FIELDS.items())
    with config.unlocked(), config.ignore_type():
        for name, _, text in (each.partition("=") for each in fields):
            if name not in known and name not in INERT:
                raise InputError(unknown_field(name, text))
            section, _, key = name.rpartition(".")
            here = config.get(section, {}) if section else config
            field = known.get(name)
            if key not in here and (field is None or field.default is ABSENT):
                raise InputError(
                    f"--config.{name}: this config has no field {name}. The command line changes "
                    "fields; set it in a config file (docs/extending.md)."
                )
            set_field(config, name, parse(text, field.domain) if field else text, field)
    return config


def parse(text: str, domain: Domain) -> Any:
    """Return the value of a domain that a text states; the text if there is none."""
    from options import plain

    values: list[Any] = [text]
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        values.append(plain(ast.literal_eval(text)))
    values.append(BOOLEANS.get(text.lower(), text))
    return next(filter(domain.allows, values), text)
