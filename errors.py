"""Errors that a user can correct: `main.py` prints their message and exits with code 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Bad input: a config field, a file or a data set.

    The message names the input, its value, what is allowed, and how to correct it.
    """


def check_name(name: str, known: Iterable[str], field: str) -> None:
    """Raise InputError, listing the known names, if the value `name` of `field` is not one."""
    if name not in known:
        raise InputError(f"{field} = {name!r} is unknown; known: {', '.join(sorted(known))}.")


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """Return table[name], after `check_name`."""
    check_name(name, table, field)
    return table[name]


UNSAFE = ("allow_pickle", "weights_only", "weights only")
"""Libraries name these options in messages that advise to load files unsafely."""


def brief(error: Exception) -> str:
    """Return the first line of an exception's message, or its type's name, for use in a message.

    Advice to load a file unsafely is replaced, and control characters are escaped.
    """
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if any(word in text.lower() for word in UNSAFE):
        return "it contains pickled Python objects, which are not loaded"
    return printable(text if isinstance(error, InputError) else text[:200])


def printable(name: object) -> str:
    """Return a name from a disk or file with control characters and undecodable bytes escaped.

    Printed unchanged, they could rewrite a terminal's output.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(name)
    )
