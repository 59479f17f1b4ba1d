"""How a command ends early: errors that a user can correct, and signals.

`main.py` prints the message of an InputError and exits with code 1. A signal ends it with one line
and the code 128 + signal, except in training, which saves its state first (`sharding.Preemption`).
The file also finds the home directory, which a user may lack.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import select
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Bad input: a config field, a file or a data set.

    The message names the input, its value, what is allowed, and how to correct it. Control
    characters, which may come from a file, are escaped, except line breaks.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(message))


class NotFiniteError(InputError):
    """Values that are not finite, in training or in samples.

    The message states where they occurred first, and which config fields to change.

    Attributes:
      summary: what is not finite, and where.
      step: the training step, counted from 1; 0 for samples.
    """

    def __init__(self, summary: str, advice: str = "", step: int = 0) -> None:
        super().__init__(f"{summary} {advice}".strip())
        self.summary = summary
        self.step = step


@contextlib.contextmanager
def advice(sentence: str) -> Iterator[None]:
    """Add a sentence, which says how to correct it, to the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} {sentence}") from error


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Let the message of an InputError about the content of a file begin with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


def check_name(name: str, known: Iterable[str], field: str) -> None:
    """Raise InputError, listing the known names, if the value `name` of `field` is not one."""
    if name not in known:
        raise InputError(f"{field} = {name!r} is unknown; known: {', '.join(sorted(known))}.")


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """Return table[name], after `check_name`."""
    check_name(name, table, field)
    return table[name]


def expand_home(path: str | Path, what: str) -> Path:
    """Return a path with the home directory in place of a `~` or `~USER` at its beginning.

    `what` is the flag or config field that names the path. Raise InputError if there is no such
    directory, and for a URL.
    """
    if "://" in str(path):
        raise InputError(
            f"{what} = {str(path)!r} is a URL; only local paths are possible, such as that of a "
            "mounted bucket."
        )
    text = os.path.expanduser(path)
    if text.startswith("~"):
        raise InputError(
            f"{what} = {str(path)!r}: the home directory {text.partition('/')[0]!r} is unknown. "
            "Give an absolute path, or put ./ in front of a name that begins with ~."
        )
    return Path(text)


def cache_folder() -> Path:
    """Return ~/.cache or, for a user without a home directory, a folder for temporary files.

    JAX runs the programs in its cache, so that no other user may write them: if the folder is not
    private, return /dev/null, so that nothing is cached.
    """
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return Path(home, ".cache")
    try:
        folder = Path(tempfile.gettempdir(), f"score_sde-{os.getuid()}")
        folder.mkdir(0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return Path(os.devnull)
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return folder if is_own and not status.st_mode & 0o077 else Path(os.devnull)


MAX_LINE = 5_000  # characters of a line of a message, which may hold names from a file
UNSAFE = ("allow_pickle", "weights_only", "weights only")
"""Libraries name these options in messages that advise to load files unsafely."""


def avoid_wrong_products() -> None:
    """Leave only those fusions of XLA's CPU compiler on that compute matrix products correctly.

    By default jaxlib 0.10.2 to 0.12.0 compile a product with a matrix of equal entries, as the
    score of a mixture of Gaussians has it, to wrong or non-finite values (JAX issue 39103). JAX
    reads the flag when it makes its first array, and aborts if it does not know it.
    """
    name, flags = "--xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    version = importlib.metadata.version("jaxlib")
    if version.startswith(("0.10.2", "0.11.", "0.12.")) and name not in flags:
        kinds = ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION")
        value = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}"


avoid_wrong_products()  # This module is imported before any array is made.


def start_command() -> None:
    """Open the standard streams that are closed, and let `ending_signals` end the process.

    A signal ends it at once, with one line. Files are complete or absent at any time, so nothing
    needs to be undone. Background threads, which an exception would wait for, end with the process.

    cron jobs and daemons may close standard streams. /dev/null takes their place; otherwise what is
    printed would be written into the file that is opened next.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for number in ending_signals():
        signal.signal(number, _exit)


def ending_signals() -> list[signal.Signals]:
    """Return the signals of Ctrl-C, `kill` and a lost terminal, unless `nohup` ignores the last."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def discard_lost_output() -> None:
    """Let /dev/null take the place of output whose terminal or reader is gone.

    Printing would be an error, which would end training before its state is saved.
    """
    with open(os.devnull, "wb") as null:
        for stream in (1, 2):
            state = select.poll()
            state.register(stream, 0)
            if state.poll(0):
                os.dup2(null.fileno(), stream)


def fail(message: str) -> NoReturn:
    """End the process with one line and exit code 1, without waiting for background threads."""
    _exit_with(f"Error: {printable_lines(message)}", 1)


def hide_background_errors() -> None:
    """Print no tracebacks of background threads.

    The main thread raises the error of a save that failed in the background. Orbax, its threads and
    TensorBoard's would print it dozens of times.
    """

    def is_ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            sys.__excepthook__(kind, value, trace)

    def ignore(arguments: object) -> None:
        """Accept what Python passes to hooks for errors that no code can catch."""

    logging.getLogger("absl").addFilter(is_ours)
    sys.excepthook, threading.excepthook, sys.unraisablehook = show, ignore, ignore


def _exit(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    _exit_with(f"\nStopped by {name}. Finished files are kept; rerun to resume.", 128 + number)


def _exit_with(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # The reader of a pipe may have ended.
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)


def brief(error: Exception) -> str:
    """Return the first line of an exception's message, or its type's name, for use in a message.

    Advice to load a file unsafely is replaced, and control characters are escaped.
    """
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if any(word in text.lower() for word in UNSAFE):
        return "it is damaged, or contains pickled Python objects, which are not loaded"
    return printable(text if isinstance(error, InputError) else text[:200])


def printable(name: object) -> str:
    """Return a name from a disk or file with control characters and undecodable bytes escaped.

    Printed unchanged, they could rewrite a terminal's output.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(name)
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of at most MAX_LINE characters, as by `printable`."""
    lines = (printable(line[: MAX_LINE + 1]) for line in text.split("\n"))
    return "\n".join(f"{line[:MAX_LINE]} ..." if len(line) > MAX_LINE else line for line in lines)
