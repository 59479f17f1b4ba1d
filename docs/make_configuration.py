"""Write the tables of docs/configuration.md: all config fields, from configs/fields.py.

python -m docs.make_configuration
"""

from __future__ import annotations

import itertools
from pathlib import Path

import factory

from configs.fields import ABSENT, FIELDS, INERT

PAGE = Path(__file__).with_name("configuration.md")


def row(name: str) -> str:
    """Return the table row of a field."""
    field = FIELDS[name]
    default = "-" if field.default is ABSENT else f"`{field.default!r}`"
    known = getattr(field.domain, "known", ()) or factory.choices().names.get(name, ())
    allowed = "one of " + ", ".join(known) if known else field.domain.describe()
    cells = (f"`{name}`", default, allowed, ", ".join(field.affects) or "nothing", field.meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def page() -> str:
    """Return the page with its introduction and new tables."""
    lines = [PAGE.read_text().partition("\n## ")[0]]
    for section, names in itertools.groupby(FIELDS, lambda name: name.partition(".")[0]):
        lines += [f"## {section}\n", "| field | default | allowed | affects | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |", *map(row, names), ""]
    lines += ["## Official fields without effect\n"]
    lines += [f"- `{name}`: {reason}" for name, reason in INERT.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
