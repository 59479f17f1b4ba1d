"""Paired timing: programs run in turn, each in a process of its own.

In every round each program runs once, so that background load affects all equally. Ratios are
medians over the rounds. Worker processes import this module first: it must not import JAX.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # Several processes share an accelerator.
    # By default PyTorch's threads spin while they wait, which makes a step up to a hundred times
    # slower on shared cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
Seconds = Mapping[str, Sequence[float]]
"""Seconds of each round, by program."""


class Program(NamedTuple):
    """What a worker process times: one run with its units of work, and more entries of its row."""

    run: Callable[[], object]
    work: float
    facts: dict[str, Any]


class Contestant(NamedTuple):
    """A program that is compared with others.

    Attributes:
      function, arguments: 'module:name' of a function that returns a `Program`, in a new process.
      rivals: names of other contestants, by the column that states the ratio to them.
      checkout: a folder whose modules replace those of this checkout, except for this package.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    rivals: dict[str, str] = {}
    checkout: str = ""


def process(environment: Mapping[str, str] = {}, checkout: str = "") -> ProcessPoolExecutor:
    """Return an executor of one new process with these variables and the code of `checkout`."""
    context = multiprocessing.get_context("spawn")
    arguments = {**ENVIRONMENT, **environment}, checkout
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=arguments)


def isolated(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] = {}
) -> Any:
    """Call a function of a module in a new process; return its result or raise its exception."""
    with process(environment) as executor:
        return executor.submit(function, *arguments).result()


def _begin(variables: dict[str, str], checkout: str) -> None:
    os.environ.update(variables)
    if checkout:
        sys.path.insert(0, checkout)


_programs: list[Program] = []
"""The program of this process, if it is a worker."""


def _prepare(function: str, arguments: dict[str, Any]) -> Program:
    """Build the program of this process and run it once; return what is known about it."""
    module, _, name = function.partition(":")
    program = getattr(importlib.import_module(module), name)(**arguments)
    program.run()
    _programs.append(program)
    return program._replace(run=int)  # A compiled function cannot be sent to another process.


def _time_run() -> float:
    return seconds_of(_programs[0].run)


def seconds_of(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def alternate(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call functions that return their seconds, one after the other in each round."""
    found = [{name: run() for name, run in timed.items()} for _ in range(rounds)]
    return {name: [each[name] for each in found] for name in timed}


def ratio(seconds: Seconds, name: str, other: str) -> float:
    """Return the median over the rounds of `other`'s seconds divided by those of `name`."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))


def compare(contestants: Sequence[Contestant], rounds: int) -> list[dict[str, Any]]:
    """Build the programs of the contestants, time them in turn and return a row for each."""
    programs, timed = {}, {}
    with ExitStack() as stack:
        for each in contestants:
            worker = stack.enter_context(process(checkout=each.checkout))
            programs[each.name] = worker.submit(_prepare, each.function, each.arguments).result()
            timed[each.name] = lambda worker=worker: worker.submit(_time_run).result()
        seconds = alternate(timed, rounds)
    return [row(each, programs, seconds) for each in contestants]


def row(
    contestant: Contestant, programs: Mapping[str, Program], seconds: Seconds
) -> dict[str, Any]:
    """Return the row of a contestant; its ratios to rivals are those of work per second."""
    name, program = contestant.name, programs[contestant.name]
    median = statistics.median(seconds[name])
    found = {"name": name, "seconds": median, "rate": program.work / median, **program.facts}
    for column, rival in contestant.rivals.items():
        found[column] = program.work / programs[rival].work * ratio(seconds, name, rival)
    return found
