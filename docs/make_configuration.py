"""Write docs/configuration.md: all config fields, from configs/fields.py and the registries.

python -m docs.make_configuration
"""

from __future__ import annotations

import itertools
from pathlib import Path

import factory

from configs.fields import ABSENT, FIELDS, INERT

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """# Configuration

All fields of a config, with their defaults and the values they may have. Set a field on the
command line as `--config.training.batch_size=64`, a flag as `--config.eval.enable_bpd` or
`--noconfig.eval.enable_bpd`. A value outside of its range is an error before anything is written.
`-` as default means that a config has the field only if its file sets it; the command line can
change such a field, but not add it. "Affects" names the groups of results that change with a
field. If such a field differs from that of existing results, they are computed again or the
command ends with an error. This page is generated
by `python -m docs.make_configuration`.
"""


def section(name: str) -> str:
    """Return the section of a field: 'data' for 'data.path'."""
    return name.partition(".")[0]


def cell(text: str) -> str:
    """Escape a table cell."""
    return text.replace("|", "\\|")


def row(name: str) -> str:
    """Return the table row of a field."""
    field = FIELDS[name]
    default = "-" if field.default is ABSENT else f"`{field.default!r}`"
    known = getattr(field.domain, "known", ()) or factory.choices().names.get(name, ())
    allowed = "one of " + ", ".join(known) if known else field.domain.describe()
    affects = ", ".join(field.affects) or "nothing"
    cells = (f"`{name}`", default, allowed, affects, field.meaning)
    return f"| {' | '.join(map(cell, cells))} |"


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for name, names in itertools.groupby(FIELDS, section):
        parts.append(f"## {name}\n")
        parts.append(
            "| field | default | allowed | affects | meaning |\n| --- | --- | --- | --- | --- |"
        )
        parts.append("\n".join(map(row, names)) + "\n")
    parts.append("## Official fields without effect\n")
    parts.append("\n".join(f"- `{name}`: {reason}" for name, reason in INERT.items()) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
