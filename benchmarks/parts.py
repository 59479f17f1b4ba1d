"""Measurements in processes of their own, whose failures, memory and caches are theirs alone; and files of results.

python -m benchmarks.parts MODULE:FUNCTION JSON    (prints what the function returns; `run` calls it)
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
MARK = "result of the part: "
Record = dict[str, Any]


def run(
    function: str,
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = {},
    seconds: float,
) -> Record:  # noqa: B006
    """What `function`, 'module:name', returns for these arguments, which JSON can hold, in a new process.

    {'error': why} if it fails, is killed, or takes longer than `seconds`.
    """
    command = [sys.executable, "-m", "benchmarks.parts", function, json.dumps(arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, start_new_session=True, **pipes
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    finally:
        _end(process)
    found = [line for line in out.splitlines() if line.startswith(MARK)]
    if process.returncode == 0 and found:
        return json.loads(found[-1].removeprefix(MARK))
    said = [line.strip() for line in err.splitlines() if line.strip()]
    telling = [line for line in said if "Error" in line or "RESOURCE_EXHAUSTED" in line] or said
    return {"error": f"exit code {process.returncode}: {(telling or ['nothing said'])[-1][:300]}"}


def _end(process: subprocess.Popen) -> None:
    """Ends the process and those that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.communicate()


class Records:
    """Results in a file of JSON lines, which grows at once with each, so that a later run can go on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.found: dict[str, Record] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # Cut off when its run was.
                continue
            self.found[record["key"]] = record

    def lacks(self, key: str) -> bool:
        """Whether there is no result of this key, or but an error."""
        return "error" in self.found.get(key, {"error": ""})

    def add(self, key: str, record: Record) -> None:
        """Appends a result."""
        self.found[key] = record | {"key": key}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        broken = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a") as file:
            file.write("\n" * broken + json.dumps(self.found[key]) + "\n")


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(MARK + json.dumps(result), flush=True)
