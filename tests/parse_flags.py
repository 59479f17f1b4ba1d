"""Parse the flags of calls of main.py as it does, and validate their configs; run no mode.

Reads a JSON list of lists of flags; prints a JSON list of the errors, "" where there is none. Each
call has a process of its own, a fork of this one, which has imported what they need.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import IO

import main
import sharding
from commands import command_line
from configs import validation


def _validate(command: main.Command, fields: list[str]) -> None:
    validation.validated(command_line.read_config(fields)[0], num_devices=1)


def _parse(flags: list[str], log: IO[bytes]) -> int:
    """Parse in this process, which then ends."""
    code = 1
    try:
        for stream in (1, 2):  # Such as the list of --list.
            os.dup2(log.fileno(), stream)
        main.run = _validate
        sharding.join = lambda *arguments: None
        sys.argv = ["main.py", *flags]
        main.main(main.parse_flags(sys.argv))
        code = 0
    except SystemExit as end:
        code = 1 if end.code else 0
        print(end.code, file=sys.stderr)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


def error_of(flags: list[str]) -> str:
    """The error of a call with these flags, or ''."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            _parse(flags, log)
        status = os.waitpid(child, 0)[1]
        log.seek(0)
        text = log.read().decode(errors="replace").strip()
    return (text or f"status {status}") if status else ""


if __name__ == "__main__":
    json.dump([error_of(flags) for flags in json.load(sys.stdin)], sys.stdout)
