"""docs/reproduce.md: every experiment once, with the numbers that other files state."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

from benchmarks.tables import read_table
from configs.default import Config, complete
from configs.validation import validated
from tests import documented, reference
from tests.documented import ROOT

PAGE = ROOT / "docs" / "reproduce.md"
LINK = re.compile(r"\[(\S+)\]\(../configs/\1\.py\)")
PATTERNS = {  # columns of the page, and how the docstrings of configs/ state them
    "FID": r"(?<!sampler, )FID (\d+\.\d+)",
    "IS": r"IS (\d+\.\d+)",
    "bits/dim": r"(\d\.\d+) bits/dim",
    "FID (ODE)": r"by the ODE sampler, FID (\d+\.\d+)",
    "NFE": r"(\d+) NFE",
}


def listed() -> Iterator[tuple[str, dict[str, str]]]:
    """The name of each experiment, such as 'vp/cifar10_ddpmpp', and its filled cells by column."""
    tables = re.findall(r"^\| config \|.*\n(?:\|.*\n)+", PAGE.read_text(), re.M)
    for row in (row for table in tables for row in read_table(table, "config")):
        cells = {name: row[name] for name in (*PATTERNS, "checkpoints") if row.get(name)}
        yield from ((name, cells) for name in LINK.findall(row["config"]))


ROWS = dict(listed())


def load(name: str) -> Config:
    """Return the config of an experiment, such as 'vp/cifar10_ddpmpp'."""
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()


def checkpoints(config: Config) -> str:
    """Return the numbers of the checkpoints that an evaluation of the trained config processes."""
    last = config.training.n_iters // config.training.snapshot_freq
    first, end = config.eval.begin_ckpt, min(config.eval.end_ckpt, last)
    return f"{first} .. {end}" if first <= end else str(last)


def test_every_experiment_is_listed_once():
    """With the published numbers of its docstring.

    There are the 39 official ones and the nine of EDM, whose docstrings have a command.
    """
    experiments = {}
    for path in ROOT.glob("configs/*/**/*.py"):
        name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if f"--config=configs/{name}.py" in text:
            stated = " ".join(text.split("\n\n")[1].split()).split(" (DDPM in")[0]
            found = {key: re.search(pattern, stated) for key, pattern in PATTERNS.items()}
            numbers = {key: match[1] for key, match in found.items() if match}
            experiments[name] = numbers | {"checkpoints": checkpoints(load(name))}
    for name, cells in ROWS.items():
        numbers = {key: re.sub(r" \+- .*", "", cell) for key, cell in cells.items()}
        assert numbers == experiments.pop(name), name
    assert experiments == {}
    assert {name for name in ROWS if name[:4] != "edm/"} == set(reference.notes("official_configs"))
    assert len([*listed()]) == len(ROWS) == 39 + 9


@pytest.mark.parametrize("name", ROWS)
def test_commands_fit_every_experiment(name):
    """The commands show one config; those of sampling and training hold for all."""
    commands = [each for each in documented.commands(PAGE) if each.runs]
    shown = [each for each in commands if "configs/ve/cifar10_ncsnpp_continuous.py" in each.text]
    assert len(shown) == 2
    for command in shown:
        config = complete(load(name))
        for no, field, value in re.findall(r"--(no)?config\.([\w.]+)(?:=(\S+))?", command.text):
            config.update_from_flattened_dict({field: ast.literal_eval(value or str(not no))})
        validated(config, num_devices=1)
