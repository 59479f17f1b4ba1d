"""Markdown tables, and the line that names the machine, for the pages that benchmarks write."""

from __future__ import annotations

import itertools
import platform
import re
from pathlib import Path


def row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(*cells: str) -> list[str]:
    """Return the two header lines of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def read_table(text: str, first: str) -> list[dict[str, str]]:
    """Return the rows of the first table of a page whose first column is `first`, by column."""
    lines = iter(text[text.index(f"| {first} |") :].splitlines())
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    names, _, *rows = (re.split(r" *\| *", line)[1:-1] for line in table)
    return [dict(zip(names, cells, strict=True)) for cells in rows]


def machine() -> str:
    """Return the number of cores and, on Linux, the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of a shared {names[0]} machine" if names else platform.machine()


def section(text: str, name: str) -> str:
    """Return the part of a page between the markers of this name, with them; '' without markers."""
    found = _pattern(name).search(text)
    return found[0] if found else ""


def set_section(text: str, name: str, content: str) -> str:
    """Return a page with new content between the markers of this name, or else at the end."""
    new = f"<!-- {name}: begin -->\n\n{content.strip()}\n\n<!-- {name}: end -->"
    old = section(text, name)
    return text.replace(old, new) if old else f"{text.rstrip()}\n\n{new}\n"


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {name}: begin -->.*?<!-- {name}: end -->", re.S)
