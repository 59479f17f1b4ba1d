"""Write docs/configuration.md: every config field with its default, the values it may have, and its meaning.

Run `python -m docs.make_configuration` after a change of configs/fields.py or of a registry of names. tests/test_docs.py
fails if the page is out of date.
"""

from __future__ import annotations

from pathlib import Path

import factory
from configs.domains import Name
from configs.fields import ABSENT, FIELDS, INERT, Field

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """# Configuration

Generated from `configs/fields.py` by `python -m docs.make_configuration`.

Every field can be set in a config file or on the command line: `--config.training.batch_size=64`,
`--config.data.centered`, `--noconfig.data.centered`, `--config.model.ch_mult="(1,2,2)"`. Names and
defaults are those of the official release; `configs/differences.py` lists the exceptions. Values
are checked before anything is compiled or written, and all problems are reported together. A field
without a default is an option of some networks, which `configs/networks.py` sets.
"""
TITLES = {
    "": "General",
    "data": "Data",
    "model": "Network and SDE",
    "training": "Training",
    "optim": "Optimizer",
    "sampling": "Sampling",
    "guidance": "Guidance",
    "classifier": "Classifier",
    "restore": "Inverse problems",
    "eval": "Evaluation",
}


def allowed(name: str, field: Field) -> str:
    """The values that a field may have."""
    if isinstance(field.domain, Name):
        known = field.domain.known or factory.choices().names[name]
        return ", ".join(f"`{each}`" for each in known)
    return field.domain.describe()


def section(prefix: str) -> str:
    """The table of the fields whose names begin with a prefix."""
    lines = [
        f"## {TITLES[prefix]}",
        "",
        "| field | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in FIELDS.items():
        if name.rpartition(".")[0] == prefix:
            default = "" if field.default is ABSENT else f"`{field.default!r}`"
            lines.append(f"| `{name}` | {default} | {allowed(name, field)} | {field.meaning} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in FIELDS)
    inert = [f"| `{name}` | {reason} |" for name, reason in INERT.items()]
    last = ["## Fields without effect", "", "Official configs contain them; they are accepted.", ""]
    last += ["| field | reason |", "| --- | --- |", *inert]
    sections = [INTRODUCTION, *(section(prefix) + "\n" for prefix in prefixes), "\n".join(last)]
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
