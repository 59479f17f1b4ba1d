"""What is timed of our code: one run of each case, for `harness.compare`.

Images are random bytes, so that no data set is needed. Every function takes a config file and
changed fields, among them training.batch_size, and compiles for one device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import datasets
import likelihood as likelihoods
import training
from benchmarks import programs
from benchmarks.harness import Program, seconds_of
from benchmarks.programs import Compiled, make_experiment
from benchmarks.tables import Row
from experiment import Experiment
from models.building import Params
from readers import preprocessing

TOLERANCE = 0.1  # of the adaptive steps of likelihoods
BATCHES = 32  # that are read in a run


def train_step(config: str, overrides: Sequence[str]) -> Program:
    """Run train steps, one on CPUs and 10 elsewhere, on one batch on the device."""
    experiment = make_experiment(config, overrides)
    compiled = programs.compile_stages(*programs.train_step(experiment))
    state, batch = training.score_job(experiment).initial_state(), programs.images(experiment)
    steps = 1 if jax.default_backend() == "cpu" else 10

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled.call(state, batch)
        jax.block_until_ready(metrics)

    return Program(run, steps * len(batch.pixels), _facts(experiment, compiled))


def forward(config: str, overrides: Sequence[str]) -> Program:
    """Evaluate the score for a batch of random states on the device, without a gradient."""
    experiment = make_experiment(config, overrides)
    x = jax.random.normal(jax.random.key(0), programs.batch_shape(experiment))
    given = experiment.init_params(), x, jnp.full(len(x), 0.5)
    score = jax.jit(lambda params, x, t: experiment.score(params)(x, t))
    compiled = programs.compile_stages(score, *given)
    facts = _facts(experiment, compiled)
    return Program(lambda: jax.block_until_ready(compiled.call(*given)), len(x), facts)


def sampling(config: str, overrides: Sequence[str], levels: int, method: str) -> Program:
    """Draw a batch by predictor and corrector on `levels` noise levels, or by the solver.

    The work are evaluations of the network for an image.
    """
    changed = f"model.num_scales={levels}", f"sampling.method={method}"
    experiment = make_experiment(config, [*overrides, *changed])
    model = experiment.trained_model(experiment.init_params())
    count = experiment.config.training.batch_size

    def run() -> np.ndarray:
        return np.asarray(experiment.draw_images(model, 0, count).nfe)

    nfe = float(run().max())
    return Program(run, nfe * count, _facts(experiment) | {"evaluations": nfe})


def likelihood(config: str, overrides: Sequence[str]) -> Program:
    """Compute log p of a batch by the adaptive ODE with one probe and a high TOLERANCE.

    The network is untrained. The work are evaluations of the network for an image.
    """
    experiment = make_experiment(config, overrides)
    params, shape = experiment.init_params(), programs.batch_shape(experiment)
    keys = jax.random.split(jax.random.key(0), shape[0])
    x, probes = jax.random.uniform(keys[0], shape), likelihoods.draw_probes(keys, shape)

    def log_prob(params: Params, x: Array, probes: Array) -> likelihoods.Likelihood:
        evaluate = experiment.score(params)
        return likelihoods.log_likelihood(evaluate, experiment.sde, x, probes, tolerance=TOLERANCE)

    compiled = programs.compile_stages(jax.jit(log_prob), params, x, probes)

    def run() -> Array:
        return jax.block_until_ready(compiled.call(params, x, probes)).nfe

    nfe = float(run().max())
    return Program(run, nfe * len(x), _facts(experiment, compiled) | {"evaluations": nfe})


def input_pipeline(config: str, overrides: Sequence[str], in_memory: bool) -> Program:
    """Read shuffled training batches of the data of a config, as training does.

    Without `in_memory` images are decoded in every epoch, as those of large data sets are.
    """
    preprocessing.MEMORY = preprocessing.MEMORY if in_memory else 0
    experiment = make_experiment(config, overrides)
    train, count = experiment.train, experiment.config.training.batch_size
    iterator = datasets.Batches(train, count, seed=0).iterate(0)
    for _ in range(8 + in_memory * (len(train) // count)):  # Fills the queue and the memory.
        next(iterator)

    def run() -> None:
        for _ in range(BATCHES):
            next(iterator)

    # Unlike seconds, CPU time hardly depends on background load.
    cpu = seconds_of(run, clock=time.process_time) / (BATCHES * count)
    return Program(run, BATCHES * count, {"cpu": cpu})


def _facts(experiment: Experiment, compiled: Compiled | None = None) -> Row:
    facts: Row = {"parameters": programs.parameters(experiment)}
    if compiled:
        facts |= {"memory": compiled.peak, "to_compile": compiled.seconds}
    return facts
