"""docs/reproduce.md: every experiment once, with the numbers that other files state."""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from configs.default import Config, complete
from configs.validation import validated
from tests import documented, reference
from tests.documented import ROOT

PAGE = ROOT / "docs" / "reproduce.md"
ROW = re.compile(r"^\| (\[.*\)) \| (.*) \| (\S+(?: .. \S+)?) \|$", re.M)
LINK = re.compile(r"\[(\S+)\]\(../configs/\1\.py\)")
LISTED = [(name, row[1:]) for row in ROW.findall(PAGE.read_text()) for name in LINK.findall(row[0])]
ROWS = dict(LISTED)
"""The published numbers and the checkpoints by the name of the config."""


def load(name: str) -> Config:
    """Return the config of an experiment, such as 'vp/cifar10_ddpmpp'."""
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()


def checkpoints(config: Config) -> str:
    """Return the numbers of the checkpoints that an evaluation of the trained config processes."""
    last = config.training.n_iters // config.training.snapshot_freq
    first, end = config.eval.begin_ckpt, min(config.eval.end_ckpt, last)
    return f"{first} .. {end}" if first <= end else str(last)


def test_every_experiment_is_listed_once():
    """The 39 official ones and the nine of EDM, which are those whose docstrings have a command."""
    experiments = {}
    for path in ROOT.glob("configs/*/**/*.py"):
        name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if f"--config=configs/{name}.py" in text:
            published = " ".join(text.split("\n\n")[1].split()).removeprefix("Published ")
            quoted = re.split(r" EDM augments| data\.path", published)[0]
            experiments[name] = (quoted, checkpoints(load(name)))
    assert experiments == ROWS
    assert {name for name in ROWS if name[:4] != "edm/"} == set(reference.notes("official_configs"))
    assert len(LISTED) == len(ROWS) == 39 + 9


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
