"""Write the tables of experiments in docs/reproduce.md.

python -m docs.make_reproduce

Published numbers are those that the docstrings of configs/ state, and hours those of
docs/accelerators.md, which `python -m benchmarks cost` computes. An experiment is a config whose
docstring has the command that trains it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from benchmarks import tables
from benchmarks.configs import ROOT, all_configs, config_name, load_config
from configs.default import Config

PAGE = Path(__file__).with_name("reproduce.md")
COST = Path(__file__).with_name("accelerators.md")
OURS: dict[str, str] = {}
"""Our numbers by the name of the config, with command and machine; the others were not run."""
TABLES = {  # the data sets of each table, and a part of the names of its configs
    "cifar10": (("CIFAR10",), ("ve/", "vp/", "subvp/")),
    "faces and rooms": (("CELEBA", "LSUN", "FFHQ", "CelebAHQ"), ("ve/", "vp/")),
    "edm": (("CIFAR10", "folder"), ("edm/",)),
}
HOURS = {  # columns of docs/accelerators.md
    "GB": "GB at this batch",
    "training, hours, H100": "hours, H100, TF32",
    "training, hours, TPU v5p": "hours, TPU v5p, bfloat16",
    "samples, hours, H100": "hours for samples, H100, TF32",
}


class Experiment(NamedTuple):
    """A config with what its docstring states.

    Attributes:
      name: 'vp/cifar10_ddpmpp'.
      config: the complete config.
      published: the published numbers, with their tables.
      command: the command that trains it.
    """

    name: str
    config: Config
    published: str
    command: str


def experiments() -> list[Experiment]:
    """Return the experiments that were published, in the order of their names."""
    found = []
    for path in all_configs():
        text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
        if f"--config={path}" in text:
            _, published, command = (" ".join(part.split()) for part in text.split("\n\n"))
            name = config_name(path)
            found.append(Experiment(name, load_config(path), published, command))
    return found


def checkpoints(config: Config) -> str:
    """Return the numbers of the checkpoints that an evaluation of the trained config processes."""
    last = config.training.n_iters // config.training.snapshot_freq
    first, end = config.eval.begin_ckpt, min(config.eval.end_ckpt, last)
    return f"{first} .. {end}" if first <= end else str(last)


def table(chosen: list[Experiment], cost: dict[str, dict[str, str]]) -> list[str]:
    """Return the table of some experiments, given the rows of docs/accelerators.md by config."""
    lines = tables.header("config", "published", *HOURS, "checkpoints", "ours")
    for each in chosen:
        link = f"[{each.name}](../configs/{each.name}.py)"
        row = cost.get(each.name, {})
        hours = [row.get(column, "not computed") for column in HOURS.values()]
        published = each.published.removeprefix("Published ")
        ours = OURS.get(each.name, "not run")
        lines.append(tables.row(link, published, *hours, checkpoints(each.config), ours))
    return lines


def page(text: str, cost: str) -> str:
    """Return the page with current tables, given the text of docs/accelerators.md."""
    rows = {row["config"]: row for row in tables.read_table(cost, "config")}
    everything = experiments()
    for name, (datasets, folders) in TABLES.items():
        chosen = [
            each
            for each in everything
            if each.config.data.dataset in datasets and each.name.startswith(folders)
        ]
        text = tables.set_block(text, name, "\n".join(table(chosen, rows)))
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), COST.read_text()))
