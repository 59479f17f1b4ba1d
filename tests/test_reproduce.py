"""docs/reproduce.md: every experiment once, with the numbers that other files state."""

from __future__ import annotations

import re

import pytest

from benchmarks.configs import load_config
from benchmarks.tables import read_table
from configs.default import Config
from docs import make_reproduce
from factory import validated
from tests import documented, reference

PAGE = make_reproduce.PAGE
CHECKPOINTS = PAGE.with_name("checkpoints.md")
EXPERIMENTS = {each.name: each for each in make_reproduce.experiments()}
LABELS = {  # columns of docs/checkpoints.md, and how docstrings state them
    "FID": r"FID {}\b",
    "IS": r"IS {}\b",
    "FID (ODE)": r"by the ODE sampler, FID {}\b",
    "bits/dim": r"\b{} bits/dim",
}


def listed() -> list[str]:
    """The names of the configs in the tables of the page, in order."""
    return re.findall(r"^\| \[(\S+)\]\(../configs/\1\.py\) \|", PAGE.read_text(), re.M)


def test_the_page_is_current():
    """If this fails, run `python -m docs.make_reproduce`."""
    text = PAGE.read_text()
    assert make_reproduce.page(text, make_reproduce.COST.read_text()) == text


def test_every_experiment_is_listed_once():
    """The 39 official ones and the nine of EDM."""
    official = list(reference.notes("official_configs"))
    names = listed()
    assert len(official) == 39
    assert sorted(names) == sorted(EXPERIMENTS)
    assert sorted(name for name in names if not name.startswith("edm/")) == sorted(official)
    assert sum(name.startswith("edm/") for name in names) == 9


def test_published_numbers_are_those_of_the_checkpoints():
    """The table of docs/checkpoints.md was written apart from the docstrings of configs/."""
    compared = 0
    for row in read_table(CHECKPOINTS.read_text(), "Folder"):
        published = EXPERIMENTS[row["Config"].strip("`")].published
        for column, label in LABELS.items():
            if row[column]:
                assert re.search(label.format(re.escape(row[column])), published), row
                compared += 1
    assert compared == 31


def test_published_numbers_of_edm():
    for row in read_table(CHECKPOINTS.read_text(), "File"):
        names, fids = (row[column].replace("`", "").split(", ") for column in ("Config", "FID"))
        for name, fid in zip(names, fids, strict=True):
            assert re.search(
                rf"FID {re.escape(fid)} .*{row['NFE']} NFE", EXPERIMENTS[name].published
            )


@pytest.mark.parametrize(
    ("begin", "end", "steps", "expected"),
    [(9, 26, 1_300_001, "9 .. 26"), (9, 26, 950_001, "9 .. 19"), (50, 96, 2_400_001, "48")],
)
def test_checkpoints(begin, end, steps, expected):
    config = Config({"training": {"n_iters": steps, "snapshot_freq": 50_000}})
    config.eval = {"begin_ckpt": begin, "end_ckpt": end}
    assert make_reproduce.checkpoints(config) == expected


def commands() -> list[tuple[str, dict[str, str]]]:
    """The names of the configs of the page's commands, and the config fields that they set."""
    found = []
    for command in documented.commands(PAGE):
        config = re.search(r"--config=configs/(\S+)\.py", command.text)
        if config and command.runs:
            flags = re.findall(r"--(no)?config\.([\w.]+)(?:=(\S+))?", command.text)
            fields = {name: value or str(not no) for no, name, value in flags}
            found.append((config[1], fields))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_commands_fit_every_experiment(name):
    """The commands show one config; those of sampling and training hold for all."""
    for shown, fields in commands():
        if shown == "ve/cifar10_ncsnpp_continuous":
            overrides = [f"{field}={value}" for field, value in fields.items()]
            validated(load_config(f"configs/{name}.py", overrides), num_devices=1)


def test_the_commands_are_those_of_the_docstrings():
    shown = EXPERIMENTS["ve/cifar10_ncsnpp_continuous"]
    text = PAGE.read_text().replace("$C", f"configs/{shown.name}.py")
    assert shown.command in text
    assert {name for name, _ in commands()} >= {shown.name, "vp/cifar10_ddpmpp_continuous"}
