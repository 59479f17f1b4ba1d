"""Parsing of the command line: the config of a workdir or a file, and one-line errors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from absl import flags, logging

import errors
from configs import location
from errors import InputError
from modes import stored
from pretrained import WITH_CONFIG
from workdir import CONFIG

FLAGS = flags.FLAGS
STORED = Path(stored.__file__)  # the config file that reads a config.json


def with_stored_config(argv: list[str]) -> list[str]:
    """Return the arguments with the config that a workdir was made with, if it is asked for.

    That is, for --config=DIR/config.json, and without --config. A .safetensors or .pkl file to
    import states its config as well. Other paths are replaced by those that `configs.location`
    finds.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "workdir", "source"):
        parser.add_argument(f"--{name}", f"-{name}", nargs="?")
    found, others = parser.parse_known_args(argv[1:])
    config = found.config
    if config is None and (found.source or "").endswith(WITH_CONFIG):
        config = f"{STORED}:{found.source}"
    elif config is None and found.workdir:
        config = f"{STORED}:{found.workdir}"
    elif config and Path(config).name == CONFIG:
        config = f"{STORED}:{config}"
    elif config:
        path, *text = config.split(":", 1)  # ml_collections passes the text to get_config.
        config = ":".join([location.find(path), *text])
    given = {"config": config, "workdir": found.workdir, "source": found.source}
    flags_of_config = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*argv[:1], *flags_of_config, *others]


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a wrong one, an unreadable config or an unknown field is a one-line error."""
    logging.set_verbosity(logging.ERROR)  # `main` sets it for all other messages.
    argv = with_stored_config(argv)
    sys.argv[:] = argv  # config_flags reads the fields of the config from there.
    try:
        return FLAGS(argv)
    except Exception as error:  # A config file may raise anything.
        causes, cause = [], error.__context__
        while cause:
            causes.append(cause)
            cause = cause.__context__
        ours = [each for each in causes if isinstance(each, InputError)]
        if ours:  # The others repeat it with a traceback, which config_flags adds.
            errors.fail(str(ours[-1]))
        reason = " ".join(str(error).split()) or "no message"
        flags_given = " ".join(argv[1:])
        sys.exit(f"Error: {type(error).__name__}: {reason} (in the flags {flags_given})")
