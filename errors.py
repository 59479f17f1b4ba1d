"""How a command ends early: errors that a user can correct, and signals.

`main.py` prints the message of an InputError and exits with code 1. A signal ends it with one line
and the code 128 + signal, except in training, which saves its state first (`sharding.Preemption`).
The file also finds the home directory, which a user may lack.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import reprlib
import select
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self


class InputError(ValueError):
    """Bad input: a config field, a file or a data set.

    The message names the input, its value, what is allowed, and how to correct it. Control
    characters, which may come from a file, are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(message))


class _Short(reprlib.Repr):
    def repr(self, x: Any) -> str:
        return printable(super().repr(x))  # That of an array has several lines.


SHORT = _Short()
SHORT.maxstring = SHORT.maxother = 100
SHORT.maxtuple = SHORT.maxlist = 20
"""Shortens long values in messages."""


def nearest(name: Any, known: Iterable[str], form: str = "{}") -> str:
    """Return a question for a message: whether one of the `known` names was meant, or ''.

    `form` states how a user writes the name.
    """
    if not isinstance(name, str):
        return ""
    close = difflib.get_close_matches(name[:100].lower(), known, 1, 0.65)
    return f" Did you mean {form.format(close[0])}?" if close else ""


class UnknownOptionError(InputError):
    """An option that its owner does not have: `given` are its arguments of `unknown_option`."""

    given: tuple[str, Any, str, Collection[str], Collection[str]]


def unknown_option(
    name: str, value: Any, owner: str, known: Collection[str], more: Collection[str] = ()
) -> UnknownOptionError:
    """Return the error about an option `name`, in place of which `owner` has those in `known`.

    It asks whether the nearest name was meant, of these and of those in `more`.
    """
    own, hint = ", ".join(sorted(known)) or "none", nearest(name, {*known, *more} - {name})
    problem = f"{name} = {SHORT.repr(value)} has no effect on {owner}"
    error = UnknownOptionError(f"{problem}; its own options: {own}.{hint}")
    error.given = name, value, owner, known, more
    return error


def bind(
    signature: inspect.Signature, owner: str, given: tuple[Any, ...], named: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Return the arguments of a call of `owner`. Raises InputError unless the signature fits."""
    known = sorted(signature.parameters.keys() - {"self", "options"})
    accepts_all = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    for name in () if accepts_all else named.keys() - signature.parameters.keys():
        raise unknown_option(name, named[name], owner, known)
    try:
        return signature.bind(*given, **named)
    except TypeError as error:
        raise InputError(f"{owner}: {error}; its arguments: {', '.join(known)}.") from error


class Bound:
    """A base class: InputError is raised for arguments that the constructor of a class lacks."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        if given or named:  # copy and pickle pass none, and set attributes afterwards.
            bind(inspect.signature(cls.__init__), cls.__name__, (cls, *given), named)
        return super().__new__(cls)


class NotFiniteError(InputError):
    """Values that are not finite: `summary` states what, and `step` is that of training, from 1."""

    def __init__(self, summary: str, advice: str = "", step: int = 0) -> None:
        super().__init__(f"{summary} {advice}".strip())
        self.summary, self.step = summary, step


@contextlib.contextmanager
def advice(sentence: str) -> Iterator[None]:
    """Add a sentence to the message of an InputError."""
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


def expand_home(path: str | Path, what: str) -> Path:
    """Return a path with the home directory in place of `~` or `~USER`; InputError for a URL.

    `what` is the flag or config field that names the path.
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
    """Return ~/.cache or, for a user without a home directory, a private temporary folder.

    JAX runs the programs in its cache: if others may write them, it is /dev/null.
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
    reads the flag when it makes its first array, and aborts if it does not know it. So does TPU's
    compiler, to which the flags of CPUs are unknown.
    """
    if importlib.util.find_spec("libtpu"):
        return
    name, flags = "--xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    version = importlib.metadata.version("jaxlib")
    if version.startswith(("0.10.2", "0.11.", "0.12.")) and name not in flags:
        kinds = ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION")
        value = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}"


avoid_wrong_products()  # This module is imported before any array is made.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA asks to report slow compilations as bugs.


def start_command() -> None:
    """Let `ending_signals` end the process at once, and open the standard streams that are closed.

    Files are complete or absent at any time, so nothing needs to be undone. Cron jobs and daemons
    may close standard streams; what is printed would be written into the file that is opened next.
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
    """Let /dev/null take the place of output whose terminal is gone: printing would raise."""
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
    """Print no tracebacks of background threads: the main thread raises the error of their save."""

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            sys.__excepthook__(kind, value, trace)

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    sys.excepthook = show
    threading.excepthook = sys.unraisablehook = lambda _: None


def _exit(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    _exit_with(f"\nStopped by {name}. Finished files are kept; rerun to resume.", 128 + number)


def _exit_with(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # The reader of a pipe may have ended.
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)


def brief(error: Exception) -> str:
    """Return the first line of an exception's message, or its type's name, for use in a message."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if any(word in text.lower() for word in UNSAFE):
        return "it is damaged, or contains pickled Python objects, which are not loaded"
    return printable(text if isinstance(error, InputError) else text[:200])


def printable(name: object) -> str:
    """Escape characters that could rewrite a terminal's output, or that cannot be encoded."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(name)
    )


def printable_lines(text: str) -> str:
    """Escape a text as `printable` does, and limit its lines to MAX_LINE characters."""
    lines = (printable(line[: MAX_LINE + 1]) for line in text.split("\n"))
    return "\n".join(f"{line[:MAX_LINE]} ..." if len(line) > MAX_LINE else line for line in lines)
