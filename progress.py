"""What a command is doing, for the person who waits for it. Only process 0 prints.

On a terminal, counted work is a bar. Elsewhere, such as in the log of a cluster, it is a line every
INTERVAL seconds. Work of unknown length is a line after a second, and one every INTERVAL seconds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from tqdm import tqdm

FIRST, INTERVAL = 1.0, 15.0  # seconds

Update = Callable[[int], None]
"""(units done so far) -> None."""

_last_line = 0.0  # when anything was printed here, on the monotonic clock


def say(text: str) -> None:
    """Print a line above the bars."""
    global _last_line
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()
    _last_line = time.monotonic()


@contextlib.contextmanager
def waiting(text: str, *, announced: bool = False) -> Iterator[None]:
    """Say what a block does, if it takes longer than a second.

    If it has been `announced` already, the first line comes after INTERVAL seconds.
    """
    start, ended = time.monotonic(), threading.Event()

    def report() -> None:
        if ended.wait(FIRST):
            return
        if not announced:
            say(f"{text} ...")
        while not ended.wait(1):
            if time.monotonic() - _last_line >= INTERVAL:
                say(f"{text}: {_interval(time.monotonic() - start)} so far")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def counting(
    text: str, total: int, unit: str, done: int = 0, *, announced: bool = False
) -> Iterator[Update]:
    """Show how far a block has come, by the function that it is given.

    Args:
      text: what the block does, such as "drawing 64 samples".
      total: the number of units at its end; `done` are done before.
      unit: what is counted, such as "step".
      announced: see `waiting`.
    """
    start, first = time.monotonic(), done
    hidden = jax.process_index() != 0 or not sys.stderr.isatty()
    with (
        tqdm(desc=text, total=total, initial=done, unit=unit, disable=hidden, leave=False) as bar,
        waiting(text, announced=announced),
    ):

        def update(now_done: int) -> None:
            nonlocal done
            bar.update(now_done - done)
            done = now_done
            now = time.monotonic()
            if bar.disable and now - max(start, _last_line) >= INTERVAL and done > first:
                remaining = (total - done) * (now - start) / (done - first)
                say(f"{text}: {unit} {done}/{total}, ETA {_interval(remaining)}")

        yield update


def _interval(seconds: float) -> str:
    return tqdm.format_interval(seconds)
