"""Config validation: every field has a domain, and all problems are reported together."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path

import pytest

import datasets
from configs import folders, validation
from configs.default import Config, complete
from configs.fields import ABSENT, FEATURES, FIELDS, GROUPS, INERT
from docs import make_configuration
from errors import InputError
from experiment import Experiment
from metrics import features
from options import (
    SHORT,
    AnyOf,
    Code,
    Entries,
    FilePath,
    Flag,
    Integer,
    Name,
    Real,
    Sequence,
    Word,
)
from tests import tiny
from tests.refusal import refused

CONFIGS = Path(__file__).parents[1] / "configs"


def outside(domain) -> list:
    """Values that are not in a domain."""
    match domain:
        case Flag():
            return [1, "yes", None]
        case Integer():
            return [domain.low - 1, domain.high + 1, 1.5, True, "1", math.nan]
        case Real():
            ends = [domain.low] if domain.open_low else [domain.low - abs(domain.low) - 1]
            ends += [domain.high] if domain.open_high else [2 * domain.high + 1]
            return [*ends, math.nan, math.inf, -math.inf, "1", True]
        case Name():
            return ["nothing of this name", 1, None]
        case FilePath() | Word():
            return [1, None, "a\0b", ["a"]]
        case Code():
            return [1, None, ["a"]]
        case Sequence() | Entries():
            return [3, "ab", (None,), (math.nan,) * 99]
        case AnyOf():
            values = [value for each in domain.domains for value in outside(each)]
            return [value for value in values if not domain.allows(value)]
    raise AssertionError(domain)


def check(config, mode=""):
    return validation.validated(config, 2, mode)


def test_every_official_config_is_valid():
    for path in CONFIGS.glob("*/**/*.py"):
        name = ".".join(path.relative_to(CONFIGS).with_suffix("").parts)
        check(importlib.import_module(f"configs.{name}").get_config())


def test_values_outside_of_a_domain_are_refused():
    for name, field in FIELDS.items():
        first, *others = outside(field.domain)
        assert not any(map(field.domain.allows, others)), name
        fields = complete(tiny.config()).to_dict()
        section, _, key = name.rpartition(".")
        (fields[section] if section else fields)[key] = first
        problems = list(validation.check_domains(Config(fields)))
        assert len(problems) == 1, (name, first, problems)
        assert problems[0].startswith(f"{name} = {SHORT.repr(first)} ")


def test_every_field_affects_known_groups_and_has_a_meaning():
    for name, field in FIELDS.items():
        assert set(field.affects) <= GROUPS.keys(), name
        assert field.meaning.endswith("."), name
        if field.default is not ABSENT:
            assert field.domain.allows(field.default), name
    used = {group for field in FIELDS.values() for group in field.affects}
    assert set(FEATURES) == set(features.EXTRACTORS)
    assert used == GROUPS.keys()
    assert set().union(*folders.DEPENDENCIES.values()) == GROUPS.keys()


def test_all_problems_are_reported_together():
    config = tiny.config(**{"optim.lr": -1.0, "sampling.snr": math.nan, "model.dropout": 2.0})
    with pytest.raises(InputError) as caught:
        check(config)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the config has 3 problems:"
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["model.dropout", "optim.lr", "sampling.snr"]


DISCRETE, SOLVER = {"training.continuous": False}, {"sampling.method": "solver"}
LOG_NORMAL = {"training.time_distribution": "log_normal"}
WRONG = [
    {"training.n_jitted_steps": 9},
    {"training.importance_weighting": True},
    {"training.time_distribution": "importance"},
    LOG_NORMAL | {"training.likelihood_weighting": True},
    LOG_NORMAL | DISCRETE,
    {"training.accumulate": 16},
    {"training.accumulate": 3},
    {"guidance.classes": (3, 10)},
    {"data.num_classes": 3, "guidance.classes": (3,)},
    {"data.num_classes": 10, "model.conditional": False},
    {"guidance.interval": (2.0, 1.0)},
    {"eval.begin_ckpt": 30},
    {"eval.features": "vgg"},
    {"eval.features": "a/b.py:f"},
    {"eval.num_samples": 10**9},
    {"model.sigma_max": 1e300},
    {"model.sigma_min": 1e-300},
    {"optim.lr": 1e-300},
    {"model.fir_kernel": (1.0, -1.0)},
    DISCRETE | {"training.likelihood_weighting": True},
    DISCRETE | {"training.sde": "subvpsde"},  # Its first level has no noise.
    DISCRETE | {"training.sde": "edmsde"},
    DISCRETE | {"model.parameterization": "EDM"},
    DISCRETE | {"model.embedding_type": "fourier"},  # Features of log(label).
    {"data.value_range": (0.0, 1.0)},  # Real numbers need no dequantization.
    {"data.value_range": (1.0, 0.0), "data.uniform_dequantization": False},
    {"sampling.method": "ode", "sampling.trajectory": True},
    SOLVER | {"sampling.solver": "adaptive_sde", "sampling.trajectory": True},
    {"training.sde": "edmsde", "data.centered": False},
    {"model.parameterization": "velocity", "model.scale_by_sigma": True},
    SOLVER | {"sampling.solver": "heun_churn", "sampling.churn_interval": (2.0, 1.0)},
    SOLVER | {"sampling.solver": "restart", "sampling.restart": (3, 1, 1.0, 0.3)},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_rules_between_fields(changes):
    """One line names a field, before anything is computed or written."""
    names = "|".join(name.split(".")[1] for name in changes)
    refused(names, Experiment, tiny.config(**changes))


@pytest.mark.parametrize(
    "change", [{"model.dtype": "bfloat16"}, {"training.remat": True}, {"data.num_classes": 10}]
)
def test_networks_without_a_capability(change):
    config = tiny.config("ve.ncsnv2.cifar10", **{"model.name": "ncsnv2_64"}, **change)
    refused("adm, .* not 'ncsnv2_64'", Experiment, config)


def test_unknown_fields_are_refused_and_inert_official_ones_accepted():
    config = tiny.config()
    config.model.unlock()
    config.model.num_heads = 4
    refused("model.num_heads = 4 is not a known field", check, config)
    del config.model.num_heads
    config.model.attention_type = "ddpm"
    assert "model.attention_type" in INERT
    check(config)


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("restore", {"restore.official": True}),
        ("calibrate", {"restore.task": "colorize"}),
        ("restore", {"restore.observed": True, "restore.task": "fourier"}),
        ("restore", {"restore.input": "a", "data.vector_size": 1}),
        ("ema", {"model.ema_stds": (), "ema.std": 0.1}),
        ("ema", {"ema.std": 0.0, "model.ema_stds": (0.05,)}),
        ("train_classifier", {"classifier.batch_size": 15}),
    ],
)
def test_rules_of_a_mode_apply_to_it_only(mode, changes):
    config = tiny.config(**changes)
    check(config)
    name, value = next(iter(changes.items()))
    refused(f"^{re.escape(f'{name} = {value!r} ')}", check, config, mode)


def test_the_page_of_all_fields_is_current(monkeypatch):
    for name in ("noise", "black_and_white", "few_digits"):  # Registered by tests/tiny.py.
        monkeypatch.delitem(datasets.DATASETS, name)
    assert make_configuration.PAGE.read_text() == make_configuration.page(), (
        "run python -m docs.make_configuration"
    )
