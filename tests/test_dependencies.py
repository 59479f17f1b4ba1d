"""Every config field either leaves a kind of result unchanged, or is among what it depends on."""

import jax
import numpy as np
import pytest

import sampling
import training
from commands import restoration
from configs import folders, validation
from configs.default import Config, complete
from configs.fields import FIELDS
from configs.folders import flatten
from datasets import Batch
from errors import InputError
from experiment import Experiment
from options import Flag, Integer, Name, Real
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
    "restore.particles": 100,
    "eval.features": "classifier",
    "eval.end_ckpt": 27,
    "eval.bpd_steps": 16,
}


def alternative(name, value):
    """Another allowed value of a field, or `value` if none is known."""
    domain, others = FIELDS[name].domain, [ALTERNATIVES.get(name, value)]
    match domain:
        case Flag():
            others = [not value]
        case Integer():
            others.append(value + 1 if value < domain.high else value - 1)
        case Real():
            others += [value * 0.5, value + 0.25, (value + domain.low) / 2]
        case Name():
            others += [each for each in sorted(domain.known) if each.lower() != value.lower()]
    return next((each for each in others if each != value and domain.allows(each)), value)


def changed(config, values):
    """The config with other values of some fields."""
    other = config.to_dict()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (other[section] if section else other)[key] = value
    return Config(other)


def is_valid(kind, config):
    try:
        return bool(validation.validated(config, 1, MODES.get(kind, "")))
    except InputError:
        return False


MODES = {"reconstructions": "restore"}
PURPOSES = {"samples": "sample", "reconstructions": "restore"}


def program(kind, config):
    """The text of the program that computes results of this kind, with all its constants."""
    experiment = Experiment(config, jax.devices()[:1], mode=MODES.get(kind, ""))
    pixels = np.zeros((BATCH, *experiment.image_shape), np.uint8)
    params, options = experiment.abstract_params, config.eval
    key = experiment.key(PURPOSES.get(kind, "loss"))
    if kind == "training":
        job = training.score_job(experiment)
        return training.jit_step(job).lower(job.abstract_state(), Batch(pixels)).as_text()
    if kind == "loss":
        return experiment.held_out_loss.lower(params, Batch(pixels), key).as_text()
    if kind == "reconstructions":
        operator = restoration.build_operator(experiment)
        y = restoration.build_problem(experiment, operator).y
        prior = experiment.trained_model({})
        posterior, sampler = restoration.make_posterior(experiment, prior, operator, None, y)

    def compute(params, key):
        model = experiment.trained_model(params)
        if kind == "samples":
            temperature = config.sampling.temperature
            guided = model.given(**experiment.guidance)
            return guided.draw(experiment.sampler, BATCH, key, temperature=temperature)
        if kind == "reconstructions":
            posterior.prior = model
            return posterior.draw(sampler, 1, key)
        keys = sampling.image_keys(key, np.arange(BATCH))
        names = ("trace", "probes", "tolerance", "t_min", "steps")
        arguments = {name: options[f"bpd_{name}"] or None for name in names}
        return model.bits(pixels, keys, **arguments)

    return jax.jit(compute).lower(params, key).as_text()


CASES = [("training", "pc"), ("loss", "pc"), ("loss", "discrete"), ("bpd", "discrete")]
CASES += [(kind, base) for kind in ("samples", "reconstructions") for base in BASES]
QUICK, SLOW = [("training", "pc"), ("samples", "solver")], pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "base"), [each if each in QUICK else pytest.param(*each, marks=SLOW) for each in CASES]
)
def test_other_fields_do_not_change_the_program(kind, base):
    """All fields that a kind of result does not depend on are changed, and the program is equal."""
    config = complete(tiny.config(**{"training.batch_size": BATCH, **BASES[base]}))
    depends = folders.dependencies(kind, config)
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
