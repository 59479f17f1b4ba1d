"""Which files of a run depend on which config fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from configs import groups
from configs.default import Config
from configs.fields import FIELDS

Depends = Mapping[str, Any]
"""What a file was made from, as JSON: config fields, and the identity of other files."""

DEPENDENCIES: dict[str, frozenset[str]] = {
    "training": frozenset(
        {groups.NETWORK, groups.TRAINING, groups.IMAGES, groups.LOSS, groups.PRECISION, groups.SEED}
    ),
    "checkpoint": frozenset({groups.NETWORK, groups.IMAGES}),
    "evaluation": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.LOSS, groups.SAMPLES, groups.GUIDANCE}
        | {groups.CLASSIFIER, groups.LIKELIHOOD, groups.ROUNDS, groups.SEED}
    ),
    "loss": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.LOCATION, groups.LOSS, groups.PRECISION}
        | {groups.ROUNDS, groups.SEED}
    ),
    "bpd": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.LOCATION, groups.LIKELIHOOD, groups.PRECISION}
        | {groups.ROUNDS, groups.SEED}
    ),
    "samples": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.GUIDANCE, groups.CLASSIFIER}
        | {groups.PRECISION, groups.ROUNDS, groups.SEED}
    ),
    "sampling": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.GUIDANCE, groups.CLASSIFIER}
        | {groups.SEED}
    ),
    "statistics": frozenset({groups.IMAGES, groups.LOCATION, groups.QUALITY}),
    "noised images": frozenset({groups.NOISE, groups.IMAGES}),
    "noised classes": frozenset({groups.NOISE, groups.IMAGES, groups.CLASSIFIER}),
    "classifier": frozenset({groups.NOISE, groups.IMAGES, groups.CLASSIFIER, groups.SEED}),
    "restoration": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.RESTORE, groups.SEED}
    ),
    "answers": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.RESTORE, groups.PRECISION}
        | {groups.ROUNDS, groups.SEED}
    ),
    "calibration": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.RESTORE, groups.CALIBRATION}
        | {groups.SEED}
    ),
    "ranks": frozenset(
        {groups.NETWORK, groups.IMAGES, groups.SAMPLES, groups.RESTORE, groups.CALIBRATION}
        | {groups.PRECISION, groups.ROUNDS, groups.SEED}
    ),
}
"""For each kind of folder or file, the groups of config fields (`configs/groups.py`) behind it."""


def dependencies(kind: str, config: Config) -> dict[str, Any]:
    """Return the config fields, with their values, that a file or folder of this kind depends on.

    A network that was trained in continuous time does not depend on model.num_scales.
    """
    values = flatten(config)
    chosen = {
        name: value
        for name, value in values.items()
        if name in FIELDS and not DEPENDENCIES[kind].isdisjoint(FIELDS[name].affects)
    }
    if kind == "checkpoint" and config.training.continuous:
        chosen.pop("model.num_scales", None)
    return chosen


def flatten(config: Config) -> dict[str, Any]:
    """Return the fields by their names on the command line, with values as JSON stores them."""
    return traverse_util.flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")


def canonical(depends: Depends) -> str:
    """Return the text by which descriptions are compared."""
    return json.dumps(depends, sort_keys=True)
