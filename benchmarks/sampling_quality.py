"""Sample quality against network evaluations (NFE) for every sampler and SDE, next to diffusers.

python -m benchmarks.sampling_quality --trained=DIR --results=FILE --write

Prints a page and, with --write, writes it to docs/sampling.md and .png. DIR holds the workdirs
vp, ve and subvp, trained with the configs of the digits and --noconfig.model.ema_ramp. A run that
is stopped resumes from FILE.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import factory
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import Array

import sampling
import solvers
from benchmarks import parts, sampling_quality_peers
from benchmarks.digit_mixture import (
    DigitMixture,
    exact_quantiles,
    sliced_distance,
)
from benchmarks.digits_reference import DigitsReference, scale
from benchmarks.sampling_quality_page import (
    BUDGETS,
    NAMES,
    OWN,
    PC,
    Result,
    page,
    plot,
)
from configs.default import Config, get_default_config
from experiment import Experiment
from models.building import Params

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "trained",
    None,
    "The folder of the workdirs vp, ve and subvp, trained with the configs of the digits; without "
    "it, only the mixture is measured.",
)
flags.DEFINE_bool("write", False, "Write docs/sampling.md and docs/sampling.png.")
flags.DEFINE_string(
    "results", "sampling_quality.jsonl", "A file of results, which a later run completes."
)
flags.DEFINE_integer("samples", 5000, "Samples of the mixture for each sampler.")
flags.DEFINE_integer("digits", 5000, "Samples of a trained network for each sampler.")

BATCH_SIZE = 500  # samples of a trained network at a time
TRAINED = {
    "vesde": ("ve.digits_ncsnpp_continuous", "ve"),
    "vpsde": ("vp.digits_ddpmpp_continuous", "vp"),
    "subvpsde": ("subvp.digits_ddpmpp_continuous", "subvp"),
}
"""The configs of the trained networks, and their workdirs in FLAGS.trained."""
CANDIDATES = ("dpm++_2m", "dpm++_2m_sde", "unipc_2", "deis")
"""Solvers measured on trained networks with 20 NFE on both schedules, and with 10."""
OTHERS = ("ddim", "dpm++_3m", "heun_churn")  # measured with 20 NFE on Karras' levels

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
    mixture: DigitMixture,
    quantiles: np.ndarray,
    records: parts.Records,
    kind: str,
    name: str,
    fields: dict[str, Any],
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

    def compute() -> Result:
        samples = run(sampling.image_keys(jax.random.key(0), jnp.arange(len(quantiles))))
        nfe = float(np.asarray(samples.nfe).mean())
        result = Result(NAMES[kind], name, nfe, sliced_distance(quantiles, samples.x))
        print(f"{result.sde} {name}: {result.nfe:.0f} NFE, {result.distance:.4f}", flush=True)
        return result

    return recorded(records, f"{NAMES[kind]}: {name}, {fields.get('num_steps')} steps", compute)


def mixture_results(kind: str, records: parts.Records) -> list[Result]:
    """Measure all samplers on one SDE.

    At 10 and 20 NFE every solver is measured on every schedule, at other budgets on its best one.
    """
    mixture = DigitMixture()
    quantiles = exact_quantiles(mixture, FLAGS.samples)
    measure = functools.partial(measure_on_mixture, mixture, quantiles, records, kind)
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


def measure_digits(
    reference: DigitsReference, sde: str, name: str, nfe: float, x: np.ndarray
) -> Result:
    """Return the distance of samples x (n, ...), with its standard deviation by resampling."""
    distance, spread = reference.distance(x)
    probabilities = reference.probabilities(x)
    frequencies = np.bincount(probabilities.argmax(1), minlength=10) / len(x)
    variation = np.abs(frequencies - reference.frequencies).sum() / 2
    notes = f"{probabilities.max(1).mean():.3f}", f"{variation:.3f}"
    result = Result(sde, name, nfe, distance, spread, notes)
    errors = f"{result.distance:.4f} +- {result.spread:.4f}"
    print(f"{sde} {name}: {nfe:.0f} NFE, {errors}, {notes}", flush=True)
    return result


def trained_results(kind: str, records: parts.Records) -> list[Result]:
    """Measure samples of the network that was trained with this SDE, in FLAGS.trained."""
    config_file, folder = TRAINED[kind]
    config = importlib.import_module(f"configs.{config_file}").get_config()
    experiment = Experiment(config)
    workdir = str(Path(FLAGS.trained) / folder)
    found, params = experiment.trained(workdir)
    identity = experiment.identity(workdir, found)["ema"]
    reference = DigitsReference(experiment)
    name = f"{NAMES[kind]}, trained"

    def measure(sampler: str, fields: dict[str, Any]) -> Result:
        def compute() -> Result:
            changed = Config(config.to_dict())
            changed.sampling.update(fields)
            x, nfe = _sample(Experiment(changed), params, FLAGS.digits)
            return measure_digits(reference, name, sampler, nfe, scale(x))

        return recorded(records, f"{name} {identity}: {sampler}, {fields}", compute)

    results = [measure(OWN, {})]
    settings = [(solver, "karras", 20) for solver in (*CANDIDATES, *OTHERS)]
    settings += [(solver, "log_snr", 20) for solver in CANDIDATES]
    settings += [(solver, "karras", 10) for solver in CANDIDATES]
    for solver, schedule, budget in settings:
        fields = solver_fields(solver, schedule, budget)
        assert fields is not None, (solver, budget)
        results.append(measure(f"{solver} {schedule}", fields))
    return results


def _sample(experiment: Experiment, params: Params, count: int) -> tuple[np.ndarray, float]:
    """Return `count` samples, uint8, and the mean of their score evaluations."""
    size = min(count, BATCH_SIZE)
    rounds = []
    for first in range(0, count, size):
        rounds.append(experiment.sample_images(params, first, size))
    images = np.concatenate([each.x for each in rounds])[:count]
    return images, float(np.mean([each.nfe.mean() for each in rounds]))


def recorded(records: parts.Records, key: str, compute: Callable[[], Result]) -> Result:
    """Return the result that `records` holds under this key; compute and add it if there is none.

    Keys contain the number of samples, so that results of other numbers are not mixed.
    """
    key = f"{key}, {FLAGS.samples} and {FLAGS.digits} samples"
    if records.is_missing(key):
        records.add(key, compute()._asdict())
    found = records.results[key]
    fields: dict[str, Any] = {name: found[name] for name in Result._fields}
    fields["notes"] = tuple(fields["notes"])
    return Result(**fields)


# --- command line ---


def results(records: parts.Records) -> dict[str, list]:
    """Return the results of each part; those in `records` are not measured again.

    These are lists of Result, under the names of the SDEs ("vesde", ...) for the mixture and
    ("trained vesde", ...) for trained networks, and lines of a table, "peers".
    """
    found: dict[str, list] = {}
    if FLAGS.trained:
        found |= {f"trained {kind}": trained_results(kind, records) for kind in NAMES}
    else:
        print("No --trained folder is given: trained networks are not measured.")
    found |= {kind: mixture_results(kind, records) for kind in NAMES}
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        if records.is_missing("peers"):
            records.add("peers", {"lines": sampling_quality_peers.rows()})
        found["peers"] = records.results["peers"]["lines"]
    else:
        print(
            "diffusers or PyTorch is not installed (requirements-dev.txt): its schedulers are not "
            "compared."
        )
    return found


def main(_: list[str]) -> None:
    """Measure, print and write the page."""
    logging.set_verbosity(logging.WARNING)
    found = results(parts.Records(FLAGS.results))
    given = [f"--{flag}={flag.upper()}" for flag in ("trained", "results") if FLAGS[flag].value]
    command = " ".join(["python -m benchmarks.sampling_quality", *given, "--write"])
    text = page(found, {"command": command, "n": FLAGS.samples, "digits": FLAGS.digits})
    print(text)
    if FLAGS.write:
        Path("docs/sampling.md").write_text(text)
        plot(found, "docs/sampling.png")


if __name__ == "__main__":
    app.run(main)
