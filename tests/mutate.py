"""`make mutate`: check that the tests fail when a line of the code is wrong.

`mutations.json` lists wrong lines, each with the tests that must notice it. The list is chosen by
hand. Mutmut and Cosmic Ray would run tests for thousands of mutants, which takes too long: JAX
compiles in most tests of this project.

Mutations are applied to a copy of the checkout, which stays as it is. Libraries are imported once:
pytest runs in forks of this process, which saves most of the time of a short test.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutations.json")
LOG = "pytest.log"  # in the copy of the checkout
PYTEST = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider")
FAILED = (1, 2)  # pytest's exit codes for failed tests, and for errors at their import
TIMEOUT = 600  # seconds for the tests of one mutation, which may loop forever
LIBRARIES = (
    *("array_record.python.array_record_data_source", "beartype", "diffrax", "dm_pix", "flax.nnx"),
    *("grain", "jax", "jaxtyping", "ml_collections", "optax", "orbax.checkpoint", "PIL.Image"),
    *("pytest", "safetensors.numpy", "scipy.ndimage", "scipy.signal", "scipy.special"),
    *("scipy.stats", "sklearn.datasets", "sklearn.neural_network", "tensorboardX", "xdist"),
)


class StaleError(Exception):
    """An entry of the list that does not fit the code."""


class Mutation(NamedTuple):
    """A wrong line.

    Attributes:
      file: the path of the file, relative to the checkout.
      old: a text that occurs exactly once in the file.
      new: the wrong text in its place.
      tests: arguments of pytest, which select the tests that must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        old, new = self._changed_lines()
        return f"{self.file}: {old!r} -> {new!r}"

    def _changed_lines(self) -> tuple[str, str]:
        """Return the first lines in which the texts differ."""
        pairs = zip((*self.old.splitlines(), ""), (*self.new.splitlines(), ""))
        return next(((a.strip(), b.strip()) for a, b in pairs if a != b), (self.old, self.new))


def read(path: Path = LIST) -> list[Mutation]:
    """Return the entries of a list of mutations."""
    entries = json.loads(path.read_text())
    return [Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def select(mutations: Sequence[Mutation], file: str, shard: str) -> list[Mutation]:
    """Return the mutations of files whose path contains `file`, and of them share i of n, "i/n"."""
    index, count = map(int, shard.split("/"))
    if not 1 <= index <= count:
        sys.exit(f"Error: --shard={shard} must be i/n with i from 1 to n.")
    chosen = [mutation for mutation in mutations if file in mutation.file]
    return chosen[index - 1 :: count]


def mutated(mutation: Mutation, root: Path) -> str:
    """Return the text of the mutated file.

    Raises StaleError unless `old` occurs exactly once in the file, and `new` differs from it.
    """
    path = root / mutation.file
    text = path.read_text() if path.is_file() else ""
    count = text.count(mutation.old)
    if count != 1:
        raise StaleError(
            f"{mutation.file} contains the following text {count} times, but a mutation must name "
            f"one place. Update or remove the entry of {LIST.name}:\n{mutation.old}"
        )
    if mutation.old == mutation.new:
        raise StaleError(f"{mutation}: the mutation changes nothing.")
    return text.replace(mutation.old, mutation.new)


def copy_checkout(target: Path) -> None:
    """Copy the files of the checkout that git does not ignore; compiled programs are shared."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (ROOT / ".cache").mkdir(exist_ok=True)
    (target / ".cache").symlink_to(ROOT / ".cache")


# --- running tests --------------------------------------------------------------------------------


def import_libraries() -> None:
    """Import what the tests import, and forget the modules of the checkout."""
    # Python would take a cached module for current if its size and its second of change were.
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def run_tests(root: Path, tests: Sequence[str], limit: float = math.inf) -> int | None:
    """Run tests in a copy of the checkout; return the exit code, or None after `limit` seconds."""
    child = os.fork()
    if not child:
        _run_pytest(root, tests)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run_pytest(root: Path, tests: Sequence[str]) -> None:
    """Run pytest in this process, and end the process with pytest's exit code."""
    code = -1
    try:
        os.setsid()  # A group of processes, which `run_tests` can end.
        os.chdir(root)
        sys.path.insert(0, str(root))
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        code = int(importlib.import_module("pytest").main([*PYTEST, *tests]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def verdict(mutation: Mutation, root: Path) -> str:
    """Apply a mutation to a copy of the checkout, run its tests, and restore the file.

    Returns "caught", "SURVIVED", or a text that starts with "ERROR" if the tests did not run.
    """
    path = root / mutation.file
    text, wrong = path.read_text(), mutated(mutation, root)
    try:
        path.write_text(wrong)
        code = run_tests(root, mutation.tests, TIMEOUT)
    finally:
        path.write_text(text)
    if code is None or code in FAILED:
        return "caught"
    return "SURVIVED" if code == 0 else f"ERROR (pytest's exit code is {code})"


def check_unmutated(mutations: Sequence[Mutation], root: Path) -> None:
    """Exit with the output of pytest if a test of the list fails without any mutation."""
    selections = sorted({tuple(mutation.tests) for mutation in mutations})
    print(f"running the tests of {len(mutations)} mutations without them", flush=True)
    for tests in selections:
        if code := run_tests(root, tests):
            print((root / LOG).read_text())
            sys.exit(
                f"Error: without mutations the tests fail too (pytest's exit code is {code}): "
                + " ".join(tests)
            )


def run(mutations: Sequence[Mutation]) -> list[Mutation]:
    """Print a line for each mutation; return those that no test noticed."""
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        root = Path(folder).resolve()
        copy_checkout(root)
        check_unmutated(mutations, root)
        for mutation in mutations:
            start = time.monotonic()
            found = verdict(mutation, root)
            print(f"{found:<9}{time.monotonic() - start:5.0f} s  {mutation}", flush=True)
            if found != "caught":
                survivors.append(mutation)
    return survivors


def main() -> None:
    """Exit with 1 if a mutation survives, or an entry is stale."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", default="", help="only files whose path contains this text")
    parser.add_argument("--shard", default="1/1", help="i/n: only the i-th of n shares of the list")
    options = parser.parse_args()
    mutations = select(read(), options.file, options.shard)
    if not mutations:
        sys.exit(f"Error: {LIST.name} has no mutation for --file={options.file!r}.")
    try:
        for mutation in mutations:
            mutated(mutation, ROOT)
    except StaleError as error:
        sys.exit(f"Error: {error}")
    import_libraries()
    survivors = run(mutations)
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutations were caught")
    if survivors:
        sys.exit("Error: not caught:\n  " + "\n  ".join(map(str, survivors)))


if __name__ == "__main__":
    main()
