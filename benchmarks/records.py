"""Results in a file of JSON lines, from which a later run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from readers.files import read_lines

Record = dict[str, Any]


class Records:
    """Results by key. Each is appended to the file at once; the last line of a key counts."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.results: dict[str, Record] = {}
        for record in read_lines(self.path):
            self.results[record["key"]] = record

    def is_missing(self, key: str) -> bool:
        """Return whether there is no result for this key, or only an error."""
        return key not in self.results or "error" in self.results[key]

    def cached(self, key: str, compute: Callable[[], Record]) -> Record:
        """Return the result under this key; compute, print and append it if there is none."""
        if self.is_missing(key):
            self.results[key] = compute() | {"key": key}
            print(f"  {self.results[key]}", flush=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            incomplete = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with open(self.path, "a") as file:
                file.write("\n" * incomplete + json.dumps(self.results[key]) + "\n")
        return self.results[key]
