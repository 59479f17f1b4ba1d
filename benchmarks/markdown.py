"""What the benchmarks' pages share."""

from __future__ import annotations

import platform
from pathlib import Path


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(*cells: str) -> list[str]:
    """The head of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def machine() -> str:
    """The processor, as Linux knows it, and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of a shared {names[0]} machine" if names else platform.machine()
