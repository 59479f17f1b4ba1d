"""What is timed of our code: one run of each case, for `harness.compare`.

Images are random bytes, so that no data set is needed. Every function takes a config file and
changed fields, compiles for one device and returns a `harness.Program`.
"""

from __future__ import annotations

import math
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
from benchmarks.harness import Program
from benchmarks.programs import make_experiment
from benchmarks.tables import Row
from errors import choose
from experiment import Experiment
from models.building import Params
from readers import preprocessing

PRODUCTS = {  # kind of matrix product: (dtype, precision)
    "float32": (jnp.float32, None),  # TF32 on NVIDIA's GPUs, exact on CPUs
    "bfloat16": (jnp.bfloat16, None),
    "float32, exact": (jnp.float32, "highest"),
}


def products(kind: str, size: int = 0, count: int = 0) -> Program:
    """Multiply square matrices several times in a row: the unit of speed.

    A size or count of 0 stands for a default that depends on the backend.
    """
    dtype, precision = choose(PRODUCTS, kind, "the kind of matrix product")
    default_size, default_count = 8192, 20
    if jax.default_backend() == "cpu":
        default_size, default_count = (2048 if dtype == jnp.float32 else 512), 2
    size, count = size or default_size, count or default_count
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), dtype) / math.sqrt(size) for key in keys)

    @jax.jit
    def multiply(a: Array, b: Array) -> Array:
        for _ in range(count):
            a = jnp.matmul(a, b, precision=precision)
        return a

    return Program(lambda: jax.block_until_ready(multiply(a, b)), 0, 2.0 * count * size**3, {})


def train_step(config: str, overrides: Sequence[str], batch_size: int, steps: int = 0) -> Program:
    """Run `steps` train steps, by default 1 on CPUs and 10 elsewhere, on one batch on the device.

    A step consists of random flips, noise levels and noise, dropout, the loss and its gradient,
    clipping, Adam and the moving average.
    """
    experiment = make_experiment(config, [*overrides, f"training.batch_size={batch_size}"])
    compiled = programs.compile_stages(*programs.train_step(experiment))
    state = training.score_job(experiment).initial_state()
    batch = programs.images(experiment, batch_size)
    steps = steps or (1 if jax.default_backend() == "cpu" else 10)

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled.call(state, batch)
        jax.block_until_ready(metrics)

    flops = steps * programs.step_flops(experiment.config)
    return Program(run, steps * batch_size, flops, _facts(experiment, compiled))


def forward(config: str, overrides: Sequence[str], batch_size: int) -> Program:
    """Evaluate the score for a batch of random states on the device, without a gradient."""
    experiment = make_experiment(config, [*overrides, f"training.batch_size={batch_size}"])
    lowerable = programs.score(experiment)
    compiled = programs.compile_stages(*lowerable)
    x = jax.random.normal(jax.random.key(0), (batch_size, *experiment.image_shape))
    arguments = experiment.init_params(), x, jnp.full(batch_size, 0.5)
    flops = programs.count_flops(*lowerable)
    facts = _facts(experiment, compiled)
    return Program(
        lambda: jax.block_until_ready(compiled.call(*arguments)), batch_size, flops, facts
    )


def sampling(
    config: str, overrides: Sequence[str], batch_size: int, levels: int, method: str
) -> Program:
    """Draw a batch, from image numbers to uint8 images, by predictor and corrector or the solver.

    The former takes `levels` noise levels instead of hundreds; time is proportional to their
    number. The work are evaluations of the network for an image.
    """
    changed = f"training.batch_size={batch_size}", f"model.num_scales={levels}"
    experiment = make_experiment(config, [*overrides, *changed, f"sampling.method={method}"])
    model = experiment.trained_model(experiment.init_params())

    def run() -> np.ndarray:
        return np.asarray(experiment.draw_images(model, 0, batch_size).nfe)

    nfe = float(run().max())
    flops = nfe * programs.count_flops(*programs.score(experiment))
    facts = {"parameters": programs.parameters(experiment), "evaluations": nfe}
    return Program(run, nfe * batch_size, flops, facts)


def likelihood(config: str, overrides: Sequence[str], batch_size: int, tolerance: float) -> Program:
    """Compute log p of a batch by the adaptive ODE with one probe.

    A high tolerance keeps the number of evaluations low; the network is untrained, so that it
    differs from that of a trained one. The work are evaluations of the network for an image.
    """
    experiment = make_experiment(config, [*overrides, f"training.batch_size={batch_size}"])
    params = experiment.init_params()
    keys = jax.random.split(jax.random.key(0), batch_size)
    x = jax.random.uniform(keys[0], (batch_size, *experiment.image_shape))
    probes = likelihoods.draw_probes(keys, x.shape)

    def log_prob(params: Params, x: Array, probes: Array) -> likelihoods.Likelihood:
        evaluate = experiment.score(params)
        return likelihoods.log_likelihood(evaluate, experiment.sde, x, probes, tolerance=tolerance)

    compiled = programs.compile_stages(jax.jit(log_prob), params, x, probes)

    def run() -> Array:
        return jax.block_until_ready(compiled.call(params, x, probes)).nfe

    nfe = float(run().max())
    flops = nfe * programs.count_flops(*programs.derivative(experiment))
    facts = _facts(experiment, compiled) | {"evaluations": nfe}
    return Program(run, nfe * batch_size, flops, facts)


def input_pipeline(
    config: str, overrides: Sequence[str], batch_size: int, batches: int, in_memory: bool
) -> Program:
    """Read shuffled training batches of the data of a config, as training does.

    Without `in_memory` images are decoded in every epoch, as those of large data sets are.
    """
    preprocessing.MEMORY = preprocessing.MEMORY if in_memory else 0
    train = make_experiment(config, overrides).train
    iterator = datasets.Batches(train, batch_size, seed=0).iterate(0)
    for _ in range(8 + in_memory * (len(train) // batch_size)):  # Fills the queue and the memory.
        next(iterator)

    def run() -> None:
        for _ in range(batches):
            next(iterator)

    start = time.process_time()  # Unlike seconds, it hardly depends on background load.
    run()
    cpu = (time.process_time() - start) / (batches * batch_size)
    return Program(run, batches * batch_size, 0.0, {"cpu": cpu})


def _facts(experiment: Experiment, compiled: programs.Compiled) -> Row:
    return {
        "parameters": programs.parameters(experiment),
        "memory": compiled.peak,
        "to_compile": compiled.seconds["compile"],
        "to_lower": compiled.seconds["trace"] + compiled.seconds["lower"],
    }
