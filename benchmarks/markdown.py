"""Markdown tables, and the line that names the machine, for the pages that benchmarks write."""

from __future__ import annotations

import platform
from pathlib import Path


def row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(*cells: str) -> list[str]:
    """Return the two header lines of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def machine() -> str:
    """Return the number of cores and, on Linux, the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of a shared {names[0]} machine" if names else platform.machine()
