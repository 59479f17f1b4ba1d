"""Write the tables of docs/configuration.md: all config fields, from `configs.fields`.

python -m docs.make_configuration
"""

from __future__ import annotations

import re
from pathlib import Path

from configs.fields import ABSENT, FIELDS, INERT

PAGE = Path(__file__).with_name("configuration.md")
SHORT = {  # How the page states a domain.
    r"an integer from (\d+) to (\d+)": r"\1 .. \2",
    r"a finite number, at least (\S+) and at most (\S*\w)": r"[\1, \2]",
    r"a finite number, at least (\S+) and below (\S*\w)": r"[\1, \2)",
    r"a finite number, above (\S+) and at most (\S*\w)": r"(\1, \2]",
    r"a finite number, above (\S+) and below (\S*\w)": r"(\1, \2)",
    r"a tuple of (\d+) to (\d+) entries, each": r"\1 .. \2 of:",
    r" without null characters": "",
    r"^one of ": "",
}


def row(name: str) -> str:
    field = FIELDS[name]
    default = "-" if field.default is ABSENT else f"`{field.default!r}`"
    allowed, affects = field.domain.describe(), ", ".join(field.affects) or "-"
    for text, short in SHORT.items():
        allowed = re.sub(text, short, allowed)
    cells = (f"`{name}`", default, allowed, affects, field.meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def page() -> str:
    """Return the page with its introduction and new tables."""
    lines = [PAGE.read_text().partition("\n## ")[0]]
    sections: dict[str, list[str]] = {}
    for name in sorted(FIELDS, key=lambda name: "." in name):  # The seed comes first.
        sections.setdefault(name.partition(".")[0], []).append(name)
    for section, names in sections.items():
        lines += [f"## {section}\n", "| field | default | allowed | affects | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |", *map(row, names), ""]
    lines += ["## Official fields without effect\n"]
    lines += [f"- `{name}`: {reason}" for name, reason in INERT.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
