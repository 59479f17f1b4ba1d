"""A fuzzer of file readers: changed copies of valid files must be read, or raise `InputError`.

    python -m tests.fuzz --seconds=60 --format=edm

Everything else is a failure, whose file is kept: other exceptions, messages of several lines,
crashes, and files that take longer than `LIMIT` or need more than `MEMORY`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from errors import InputError

LIMIT = 20.0  # Seconds for one file.
MEMORY = 2**30  # Bytes, in addition to those of the process before it reads the file.
GOOD = ("result", "InputError")
INTEGERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


class Report(NamedTuple):
    """Files by outcome, those that failed, and the largest memory (bytes) and time (s) of one."""

    counts: dict[str, int]
    failures: list[Path]
    memory: int = 0
    seconds: float = 0.0


def fuzz(
    name: str, valid: bytes, read: Callable[[Path], Any], seconds: float, seed: int = 0
) -> Report:
    """Read changed copies of a valid file for some seconds; `read` is a function of a module."""
    rng, report = random.Random(seed), Report(collections.Counter(), [])
    folder, ask, content = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")), None, valid
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = folder / f"{sum(report.counts.values())}.{name}"
        path.write_bytes(content)
        ask = ask or start(read)
        kind, memory, duration, _ = ask(path)
        report.counts[kind] += 1
        report = report._replace(
            memory=max(memory, report.memory), seconds=max(duration, report.seconds)
        )
        if kind in GOOD:
            path.unlink()
        else:
            report.failures.append(path)
            ask = None
        content = changed(valid, rng)
    return report


def changed(content: bytes, rng: random.Random) -> bytes:
    """Return a copy with a few random changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        start, place = (rng.randrange(len(data) + 1) for _ in range(2))
        part = slice(start, start + rng.choice((1, 2, 4, 8, 64, 1024)))
        match rng.choice(["byte", "byte", "integer", "integer", "delete", "splice", "repeat", ""]):
            case "byte":
                data[start : start + 1] = rng.randbytes(1)
            case "integer":
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(INTEGERS) % 2 ** (8 * size)
                data[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case "delete":
                del data[part]
            case "splice":
                data[place:place] = data[part]
            case "repeat":
                data[part] = data[part] * rng.choice((2, 3, 100, 10_000))
            case _ if rng.random() < 0.2:
                del data[start:]
    return bytes(data[: 2**24])


class Outcome(NamedTuple):
    """What reading a file ended with; memory (bytes) and time (s); the message of an InputError."""

    kind: str
    memory: int
    seconds: float
    message: str


def start(read: Callable[[Path], Any]) -> Callable[[Path], Outcome]:
    """Start a process that reads files; return what reads one there, until the first failure."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, read), daemon=True)
    process.start()
    other.close()
    pipe.recv()  # It has imported the reader.

    def ask(path: Path) -> Outcome:
        start, answer = time.monotonic(), ("hang", 0, "")
        pipe.send(path)
        try:
            answer = pipe.recv() if pipe.poll(LIMIT) else answer
        except EOFError:
            answer = ("crash", 0, "")
        if answer[0] not in GOOD:
            process.kill()
        kind, memory, message = answer
        return Outcome(kind, memory, time.monotonic() - start, message)

    return ask


def _serve(pipe: Any, read: Callable[[Path], Any]) -> None:
    """Read the files whose paths arrive, and answer with the kind of outcome and the memory."""
    limit = _memory("VmSize") + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(None)
    with contextlib.suppress(EOFError):  # The end of the process that sends them.
        while True:
            path = pipe.recv()
            Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM, the largest memory.
            before = _memory("VmRSS")
            kind, message = _outcome(read, path)
            memory = _memory("VmHWM") - before
            pipe.send((kind if memory < MEMORY else "memory", memory, message))


def _memory(name: str) -> int:
    """Return a size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _outcome(read: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    """Return "result", the type of the exception, or "InputError" with its message of one line."""
    try:
        read(path)
    except InputError as error:
        cause = error.__cause__
        is_good = "\n" not in str(error) and not isinstance(cause, MemoryError)
        return "InputError" if is_good else f"message {type(cause).__name__}", str(error)
    except BaseException as error:
        return type(error).__name__, str(error)
    return "result", ""


if __name__ == "__main__":
    from tests.fuzz_formats import FORMATS

    parser = argparse.ArgumentParser()
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    for name in [flags.format] if flags.format else FORMATS:
        make, read = FORMATS[name]
        counts, failures, memory, seconds = fuzz(name, make(), read, flags.seconds, flags.seed)
        line = f"{name}: {dict(counts)}, {memory / 2**20:.0f} MiB, {seconds:.2f} s"
        print(line, *failures, flush=True)
