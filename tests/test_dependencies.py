"""Every config field either leaves a kind of result unchanged, or is among what it depends on."""

import jax
import numpy as np
import pytest

import factory
import runs
import train_state
import training
from auxiliary import dequantization
from commands import restoration
from configs.default import Config, complete
from configs.domains import Code, Entries, FilePath, Flag, Integer, Name, Real, Sequence, Word
from configs.fields import FIELDS
from datasets import Batch
from errors import InputError
from experiment import Experiment
from metrics import bits_per_dim_stage
from runs.depends import flatten
from tests import tiny

BATCH = 4
GUIDED = {"restore.method": "moment_matching"}
# Configs whose programs read different fields: of the samplers, of guidance and of restoration.
BASES = {
    "solver": {"sampling.method": "solver", "sampling.solver": "heun_churn", **GUIDED},
    "pc": {"sampling.method": "pc", "sampling.corrector": "langevin"},
    "adaptive": {"sampling.method": "solver", "sampling.solver": "adaptive_sde", **GUIDED},
    "discrete": {"training.continuous": False, "restore.method": "dps", "restore.noise": 0.1},
}
# These change the order of operations only.
# "training.on_nonfinite" acts only on values that are not finite.
ROUNDING_ONLY = (
    "training.remat",
    "training.accumulate",
    "training.shard_params",
    "training.on_nonfinite",
)
# Values for fields whose alternatives the domain does not show.
ALTERNATIVES = {
    "data.path": "elsewhere",
    "data.dataset": "array",
    "model.name": "ncsnpp",
    "sampling.restart": (4, 2, 0.2, 0.9),
    "guidance.classes": (1, 2),
    "guidance.interval": (0.1, 2.0),
    "restore.task": "deblur",
    "restore.mask": "random",
    "eval.features": "classifier",
    "eval.end_ckpt": 27,
}


def alternative(name, value):
    """Another allowed value of a field, or `value` if none is known."""
    if name in ALTERNATIVES:
        return ALTERNATIVES[name]
    domain = FIELDS[name].domain
    match domain:
        case Flag():
            return not value
        case Integer():
            return value + 1 if value < domain.high else value - 1
        case Real():
            for other in (value * 0.5, value + 0.25, (value + domain.low) / 2):
                if other != value and domain.allows(other):
                    return other
        case Name():
            names = domain.known or factory.choices().names.get(name, ())
            return next((other for other in names if other.lower() != value.lower()), value)
        case Code() | FilePath() | Word() | Sequence() | Entries():
            return value
    raise AssertionError(name)


def changed(config, values):
    """The config with other values of some fields."""
    other = config.to_dict()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (other[section] if section else other)[key] = value
    return Config(other)


def is_valid(kind, config):
    try:
        factory.validated(config, 1, mode(kind))
    except InputError:
        return False
    return True


def mode(kind):
    return "restore" if kind == "answers" else ""


def program(kind, config):
    """The text of the program that computes results of this kind, with all its constants."""
    experiment = Experiment(config, jax.devices()[:1], mode=mode(kind))
    indices = np.arange(BATCH)
    pixels = np.zeros((BATCH, *experiment.image_shape), np.uint8)
    arguments = experiment.abstract_params, pixels, indices, 0
    match kind:
        case "training":
            optimizer = train_state.make_optimizer(experiment.config.optim)
            state = train_state.abstract(experiment.abstract_params, optimizer)
            function, arguments = training.jit_step(experiment, optimizer), (state, Batch(pixels))
        case "loss":
            function = experiment.held_out_loss
            arguments = arguments[0], Batch(pixels), experiment.key("loss")
        case "bpd":
            dequantize = dequantization.make(experiment, "", 1)
            function = bits_per_dim_stage.compile_bits_per_dim(experiment, dequantize)
            arguments = arguments[0], (pixels, indices), experiment.key("bpd")
        case "samples":
            function, arguments = experiment.sample, (arguments[0], indices)
        case "answers":
            problem = restoration.build_problem(experiment)
            function = restoration.compile_solver(experiment, problem.operator).whole
            arguments = arguments[0], problem.y[:BATCH], indices[: len(problem.y)], 0
    return jax.jit(function).lower(*arguments).as_text()


CASES = [("training", "pc"), ("loss", "pc"), ("loss", "discrete"), ("bpd", "discrete")]
CASES += [(kind, base) for kind in ("samples", "answers") for base in BASES]


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_other_fields_do_not_change_the_program(kind, base):
    """All fields that a kind of result does not depend on are changed, and the program is equal."""
    config = complete(tiny.config(**{"training.batch_size": BATCH, **BASES[base]}))
    depends = runs.dependencies(kind, config)
    others = {}
    for name, value in flatten(config).items():
        if name in FIELDS and name not in depends and name not in ROUNDING_ONLY:
            other = {name: alternative(name, value)}
            if other[name] != value and is_valid(kind, changed(config, others | other)):
                others |= other
    assert len(others) > 20
    if program(kind, changed(config, others)) == program(kind, config):
        return
    before = program(kind, config)
    guilty = [n for n, v in others.items() if program(kind, changed(config, {n: v})) != before]
    pytest.fail(f"results of kind {kind} change with {guilty}, and do not depend on them")
