"""Markdown tables, generated blocks of pages, and the machine that numbers were measured on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""The results of one program, serializable as JSON."""
Columns = dict[str, tuple[str, str, float]]
"""Columns of a table: title -> (key in the rows, format, factor)."""


def row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(*cells: str) -> list[str]:
    """Return the two header lines of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def table(rows: Iterable[Row], columns: Columns) -> list[str]:
    """Return a Markdown table, without columns that are empty in every row."""
    rows = list(rows)
    filled = {
        title: column
        for title, column in columns.items()
        if any(each.get(column[0]) is not None for each in rows)
    }
    lines = header(*filled)
    for each in rows:
        cells = [_cell(each.get(key), form, factor) for key, form, factor in filled.values()]
        lines.append(row(*cells))
    return lines


def _cell(value: Any, form: str, factor: float) -> str:
    """Format a value, a number if `form` is not empty; None is an empty cell."""
    if value is None:
        return ""
    return format(value * factor, form) if form else str(value)


def read_table(text: str, first: str) -> list[dict[str, str]]:
    """Return the rows of the first table of a page whose first column is `first`, by column."""
    lines = iter(text[text.index(f"| {first} |") :].splitlines())
    found = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    names, _, *rows = (re.split(r" *\| *", line)[1:-1] for line in found)
    return [dict(zip(names, cells, strict=True)) for cells in rows]


def config_name(path: str) -> str:
    return path.removeprefix("configs/").removesuffix(".py")


def block(text: str, name: str) -> str:
    """Return the part of a page between the markers of this name, with them; '' without markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.S)
    return found[0] if found else ""


def set_block(text: str, name: str, content: str) -> str:
    """Return a page with new content between the markers of this name, or else at the end."""
    new = f"<!-- {name}: begin -->\n\n{content.strip()}\n\n<!-- {name}: end -->"
    old = block(text, name)
    return text.replace(old, new) if old else f"{text.rstrip()}\n\n{new}\n"


def machine() -> str:
    """Return the number of cores and, on Linux, the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of a shared {names[0]} machine" if names else platform.machine()


def versions(*packages: str) -> str:
    installed = [name for name in packages if importlib.util.find_spec(name)]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in installed)


def environment() -> str:
    """Return a line that names the machine, its accelerator, and versions."""
    import jax

    device = jax.devices()[0]
    card = "" if device.platform == "cpu" else f"{device.device_kind}, in a machine with "
    return f"{card}{machine()}; {versions('jax', 'flax', 'torch', 'diffusers')}"
