"""What a command is doing. Only process 0 prints.

On a terminal, counted work is a bar. Elsewhere, as in the log of a cluster, it is a line after
INTERVAL seconds and then ever more rarely, as is work of unknown length, after a first line.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

FIRST, INTERVAL = 1.0, 15.0  # seconds
_interval = tqdm.format_interval

Update = Callable[[int], Any]
"""(units done so far) -> None."""

_last_line = 0.0  # when anything was printed here, on the monotonic clock
_announced = ""  # the last block that said what it does; one that is repeated does not


def say(text: str) -> None:
    """Print a line above the bars."""
    global _last_line
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()
    _last_line = time.monotonic()


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what a block does, if it takes longer than a second."""
    start = time.monotonic()
    with _reporting(text, lambda: f"{_interval(time.monotonic() - start)} so far"):
        yield


@contextlib.contextmanager
def counting(
    text: str, total: int, unit: str, done: int = 0, *, announced: bool = False
) -> Iterator[Update]:
    """Show how far a block has come by the function that it gets: from `done` to `total` units.

    If it was `announced` by a line already, the next one comes after INTERVAL seconds.
    """
    start, first = time.monotonic(), done
    updated = start
    if jax.process_index() == 0 and sys.stderr.isatty():
        with tqdm(desc=text, total=total, initial=done, unit=unit, leave=False) as bar:
            yield lambda now_done: bar.update(now_done - bar.n)
        return

    def status() -> str:
        now = time.monotonic()
        if done == first:
            return f"{_interval(now - start)} so far"
        # As of the last update: within a unit the time left falls.
        remaining = (total - done) * (updated - start) / (done - first) - (now - updated)
        if remaining <= 0:  # The last unit, or one that is slow: a line that repeats is no news.
            return f"{unit} {done}/{total}, {_interval(now - start)} so far"
        return f"{unit} {done}/{total}, ETA {_interval(remaining)}"

    def update(now_done: int) -> None:
        nonlocal done, updated
        done, updated = now_done, time.monotonic()

    with _reporting(text, status, announced):
        yield update


@contextlib.contextmanager
def _reporting(text: str, status: Callable[[], str], announced: bool = False) -> Iterator[None]:
    """Print the status of a block from a thread, unless another block did so recently."""
    ended, start = threading.Event(), time.monotonic()
    factor = 1.2 if announced else 1  # Such a block contains others.

    def report() -> None:
        global _announced
        if ended.wait(FIRST):
            return
        if not announced and text != _announced:
            _announced = text
            say(f"{text} ...")
        while not ended.wait(min(1.0, INTERVAL / 10)):
            now = time.monotonic()
            if now - _last_line >= factor * max(INTERVAL, (now - start) / 8):
                say(f"{text}: {status()}")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
