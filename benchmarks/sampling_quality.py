"""Sample quality against network evaluations (NFE) for every sampler and SDE, next to diffusers.

python -m benchmarks.sampling_quality --workdir=DIR --write

Prints a page and, with --write, writes it to docs/sampling.md and .png. DIR is a workdir trained
with the config that --config names.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import Array
from ml_collections import config_flags
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import factory
import sampling
import solvers
from benchmarks import sampling_quality_peers
from benchmarks.digit_mixture import (
    DigitMixture,
    exact_quantiles,
    sliced_distance,
    weighted_quantiles,
)
from benchmarks.sampling_quality_page import (
    BEST,
    BEST_SCHEDULE,
    BUDGETS,
    NAMES,
    PC,
    Result,
    page,
    plot,
)
from checkpoints import Checkpoints
from configs.default import Config, get_default_config
from experiment import Experiment

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", "configs/vp/digits_ddpmpp_continuous.py", "The experiment of --workdir."
)
flags.DEFINE_string(
    "workdir", None, "The workdir of the digits model; without it, only the mixture is measured."
)
flags.DEFINE_bool("write", False, "Write docs/sampling.md and docs/sampling.png.")
flags.DEFINE_string(
    "results", None, "A JSON file of results, which is read if it exists and completed."
)
flags.DEFINE_integer("samples", 4000, "Samples of the mixture for each sampler.")
flags.DEFINE_integer("digits", 500, "Samples of the digits model for each sampler.")

CORRECTED = {
    "vesde": {"predictor": "reverse_diffusion", "snr": 0.16},
    "vpsde": {"predictor": "euler_maruyama", "snr": 0.01},
    "subvpsde": {"predictor": "euler_maruyama", "snr": 0.01},
}


# --- samplers: names and fields of config.sampling ---


def solver_fields(name: str, schedule: str, budget: int) -> dict[str, Any] | None:
    """Return the fields of a few-step solver with the largest NFE within a budget, if there are."""
    steps = budget
    if name in ("heun", "heun_churn"):
        steps = (budget + 1) // 2
    elif name == "restart":
        steps = (budget - 3) // 2
        if steps < 3:
            return None
    return {"method": "solver", "solver": name, "schedule": schedule, "num_steps": steps}


def reference_samplers(sde: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the samplers of the paper and the adaptive-step SDE solver."""
    yield PC, {"method": "pc", "corrector": "langevin", **CORRECTED[sde]}
    yield "predictor, 1000", {"method": "pc", "corrector": "none", **CORRECTED[sde]}
    yield "ode", {"method": "ode"}
    for tolerance in (0.05, 0.02, 0.01):
        fields = {"method": "solver", "solver": "adaptive_sde", "tolerance": tolerance}
        yield f"adaptive_sde {tolerance}", fields


# --- the mixture ---


def measure_on_mixture(
    mixture: DigitMixture, quantiles: np.ndarray, kind: str, name: str, fields: dict[str, Any]
) -> Result:
    """Sample the mixture with the sampler that these fields of config.sampling describe."""
    config = get_default_config()
    config.data.centered, config.training.sde = True, kind
    config.sampling.update(fields)
    sde = factory.make_sde(config)
    sampler, score = factory.make_sampler(config, sde), mixture.score(sde)

    @jax.jit
    def run(keys: Array) -> factory.Samples:
        prior = sampling.prior_sample(keys, sde, (len(keys), *mixture.shape))
        return sampler(keys, score, prior)

    samples = run(sampling.image_keys(jax.random.key(0), jnp.arange(len(quantiles))))
    nfe = float(np.asarray(samples.nfe).mean())
    result = Result(NAMES[kind], name, nfe, sliced_distance(quantiles, samples.x))
    print(f"{result.sde} {name}: {result.nfe:.0f} NFE, {result.distance:.4f}", flush=True)
    return result


def mixture_results(kind: str) -> list[Result]:
    """Measure all samplers on one SDE.

    At 10 and 20 NFE every solver is measured on every schedule, at other budgets on its best one.
    """
    mixture = DigitMixture()
    quantiles = exact_quantiles(mixture, FLAGS.samples)
    measure = functools.partial(measure_on_mixture, mixture, quantiles, kind)
    exact = [sliced_distance(quantiles, mixture.sample(seed, FLAGS.samples)) for seed in range(20)]
    results = [Result(NAMES[kind], "floor", 0, float(np.mean(exact)), float(np.std(exact, ddof=1)))]
    results += [measure(name, fields) for name, fields in reference_samplers(kind)]
    for name in solvers.SOLVERS:
        by_schedule: dict[str, list[Result]] = {}
        for schedule in solvers.SCHEDULES:
            settings = [solver_fields(name, schedule, budget) for budget in (10, 20)]
            by_schedule[schedule] = [
                measure(f"{name} {schedule}", fields) for fields in settings if fields
            ]
            results += by_schedule[schedule]
        best = min(by_schedule, key=lambda schedule: _mean_distance(by_schedule[schedule]))
        for budget in BUDGETS:
            fields = solver_fields(name, best, budget)
            if fields and budget not in (10, 20):
                results.append(measure(f"{name} {best}", fields))
    return results


def _mean_distance(results: list[Result]) -> float:
    """Return the product of the distances, which orders as their geometric mean does."""
    return float(np.prod([result.distance for result in results]))


# --- the digits ---


class DigitsReference:
    """Distances of samples to the held-out digits, whose classes are weighted as in training."""

    def __init__(self, experiment: Experiment) -> None:
        held_out = _grey_levels(np.asarray(experiment.test.pixels))
        self.train = _grey_levels(np.asarray(experiment.train.pixels))
        _, labels = load_digits(return_X_y=True)
        is_test = np.arange(len(labels)) % 5 == 4  # the split of datasets.digits
        self.frequencies = np.bincount(labels[~is_test]) / (~is_test).sum()
        test_frequencies = np.bincount(labels[is_test]) / is_test.sum()
        weights = (self.frequencies / test_frequencies)[labels[is_test]]
        self.quantiles = weighted_quantiles(held_out, weights)
        x = self.train.reshape(len(self.train), -1)
        self.classifier = LogisticRegression(max_iter=2000).fit(x, labels[~is_test])

    def measure(self, name: str, nfe: float, x: np.ndarray) -> Result:
        """Return the distance of samples x (n, ...), with its standard deviation by resampling."""
        rng = np.random.default_rng(0)
        distances = [
            sliced_distance(self.quantiles, x[rng.integers(0, len(x), len(x))]) for _ in range(40)
        ]
        probabilities = self.classifier.predict_proba(x.reshape(len(x), -1))
        frequencies = np.bincount(probabilities.argmax(1), minlength=10) / len(x)
        variation = np.abs(frequencies - self.frequencies).sum() / 2
        notes = f"{probabilities.max(1).mean():.3f}", f"{variation:.3f}"
        distance = sliced_distance(self.quantiles, x)
        result = Result("digits", name, nfe, distance, float(np.std(distances, ddof=1)), notes)
        errors = f"{result.distance:.4f} +- {result.spread:.4f}"
        print(f"digits {name}: {nfe:.0f} NFE, {errors}, {notes}", flush=True)
        return result


def _scale(images: np.ndarray | Array) -> np.ndarray:
    """Scale uint8 images to [-1, 1]."""
    return np.asarray(images, np.float64) / 127.5 - 1


def _grey_levels(digits: np.ndarray) -> np.ndarray:
    """Scale digits of levels 0 .. 16 to [-1, 1], rounded to uint8 as samples are."""
    return _scale(np.round(digits * (255 / 16)).astype(np.uint8))


def digits_results() -> list[Result]:
    """Measure samples of the trained model."""
    experiment = Experiment(Config(FLAGS.config.to_dict()))
    checkpoints = Checkpoints(FLAGS.workdir)
    params = checkpoints.restore(checkpoints.pick(None), {"ema": experiment.abstract_params})["ema"]
    reference = DigitsReference(experiment)

    def measure(name: str, fields: dict[str, Any], **model: Any) -> Result:
        config = Config(FLAGS.config.to_dict())
        config.sampling.update(fields)
        config.model.update(model)
        samples = Experiment(config).sample_images(params, 0, FLAGS.digits)
        return reference.measure(name, float(samples.nfe.mean()), _scale(samples.x))

    train = reference.train
    subset = np.random.default_rng(0).permutation(len(train))[: FLAGS.digits]
    results = [reference.measure("training digits", 0, train[subset])]
    results.append(measure("the config's own", {}))
    for name in solvers.SOLVERS:
        budgets = (5, 10, 20, 50) if name == BEST else (10, 20)
        for budget in budgets:
            fields = solver_fields(name, BEST_SCHEDULE, budget)
            if fields:
                results.append(measure(f"{name} {BEST_SCHEDULE}", fields))
    samplers = dict(reference_samplers("vpsde"))
    results.append(measure("adaptive_sde 0.05", samplers["adaptive_sde 0.05"]))
    results.append(measure(PC, samplers[PC], num_scales=1000))
    return results


# --- command line ---


def results() -> dict[str, list]:
    """Return the results of each part; parts in the file of --results are not measured again.

    These are lists of Result, "vesde", "vpsde", "subvpsde" and "digits", and table lines, "peers".
    """
    parts: dict[str, Callable[[], list]] = {
        kind: functools.partial(mixture_results, kind) for kind in NAMES
    }
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        parts["peers"] = sampling_quality_peers.rows
    else:
        print(
            "diffusers or PyTorch is not installed (requirements-dev.txt): its schedulers are not "
            "compared."
        )
    if FLAGS.workdir:
        parts["digits"] = digits_results
    else:
        print("No --workdir is given: the trained digits model is not measured.")
    path = Path(FLAGS.results) if FLAGS.results else None
    saved = json.loads(path.read_text()) if path and path.exists() else {}
    for name, measure in parts.items():
        if name not in saved:
            saved[name] = measure()
            if path:
                path.write_text(json.dumps(saved))
    return {
        name: rows if name == "peers" else [Result(*each) for each in rows]
        for name, rows in saved.items()
    }


def main(_: list[str]) -> None:
    """Measure, print and write the page."""
    logging.set_verbosity(logging.WARNING)
    parts = results()
    given = [f"--{flag}={flag.upper()}" for flag in ("workdir", "results") if FLAGS[flag].value]
    command = " ".join(["python -m benchmarks.sampling_quality", *given, "--write"])
    text = page(parts, {"command": command, "n": FLAGS.samples, "digits": FLAGS.digits})
    print(text)
    if FLAGS.write:
        Path("docs/sampling.md").write_text(text)
        plot(parts, "docs/sampling.png")


if __name__ == "__main__":
    app.run(main)
