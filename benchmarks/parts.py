"""Measurements that run in separate processes, and files that record their results.

python -m benchmarks.parts MODULE:FUNCTION JSON    (prints the function's result; `run` calls this)

A separate process isolates failures, memory and caches.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PREFIX = "result of the part: "
Record = dict[str, Any]


def run(
    function: str,
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float,
) -> Any:
    """Call `function`, 'module:name', in a new process and return its result.

    Arguments and result must be serializable as JSON. Returns {'error': reason} if the function
    fails, is killed, or takes longer than `seconds`.
    """
    command = [sys.executable, "-m", "benchmarks.parts", function, json.dumps(arguments)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    finally:
        _kill_group(process)
    results = [line for line in out.splitlines() if line.startswith(PREFIX)]
    if process.returncode == 0 and results:
        return json.loads(results[-1].removeprefix(PREFIX))
    return {"error": f"exit code {process.returncode}: {_last_error(err)}"}


def _last_error(output: str) -> str:
    """Return the most informative line of what a failed process wrote to stderr."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    candidates = errors or lines or ["no output"]
    return candidates[-1][:300]


def _kill_group(process: subprocess.Popen) -> None:
    """Kill the process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.communicate()


class Records:
    """Results in a file of JSON lines. Each is appended at once, so that a later run can resume.

    Attributes:
      results: the results by key; the last line of a key counts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.results: dict[str, Record] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # A killed run leaves an incomplete line.
                continue
            self.results[record["key"]] = record

    def is_missing(self, key: str) -> bool:
        """Return whether there is no result for this key, or only an error."""
        return key not in self.results or "error" in self.results[key]

    def add(self, key: str, record: Record) -> None:
        """Append a result."""
        self.results[key] = record | {"key": key}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a") as file:
            if incomplete:
                file.write("\n")
            file.write(json.dumps(self.results[key]) + "\n")


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(PREFIX + json.dumps(result), flush=True)
