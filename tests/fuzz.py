"""Read files in a process of its own: each must be read, or raise `InputError`.

Everything else is a failure: other exceptions, messages of several lines, crashes, and files that
take longer than `LIMIT` or need more than `MEMORY`. `changed` damages valid files at random.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from errors import InputError

LIMIT = 20.0  # Seconds for one file.
MEMORY = 2**30  # Bytes, in addition to those of the process before it reads the file.
GOOD = ("result", "InputError")
INTEGERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


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
    """What reading a file ended with, the memory in bytes, and the message of an InputError."""

    kind: str
    memory: int
    message: str


class Server:
    """A process that reads files, which is started again after a failure."""

    def __init__(self, read: Callable[[Path], Any]) -> None:
        self.read, self.process = read, None

    def ask(self, path: Path) -> Outcome:
        """Return the outcome of reading a file there."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(other, self.read), daemon=True)
            self.process.start()
            other.close()
            self.pipe.recv()  # It has imported the reader.
        answer = Outcome("hang", 0, "")
        self.pipe.send(path)
        try:
            answer = self.pipe.recv() if self.pipe.poll(LIMIT) else answer
        except EOFError:
            answer = Outcome("crash", 0, "")
        if answer.kind not in GOOD:
            self.process.kill()
            self.process = None
        return answer


def _serve(pipe: Any, read: Callable[[Path], Any]) -> None:
    """Read the files whose paths arrive, and answer with the outcomes."""
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
            pipe.send(Outcome(kind if memory < MEMORY else "memory", memory, message))


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
