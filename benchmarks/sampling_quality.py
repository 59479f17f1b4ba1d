"""Quality against network evaluations (NFE) of every sampler on every SDE, beside diffusers; writes docs/sampling.md.

python -m benchmarks.sampling_quality --workdir=DIR --write    (DIR: trained with the config that --config names)
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
from jax import Array, lax
from ml_collections import config_flags
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import factory
import sampling
import solvers
from benchmarks.markdown import header, row
from benchmarks.sampling_quality_page import (
    BEST,
    BEST_SCHEDULE,
    BUDGETS,
    NAMES,
    PC,
    Result,
    draw,
    page,
)
from checkpoints import Checkpoints
from configs.default import Config, get_default_config
from experiment import Experiment
from sde_lib import SDE, VPSDE, Score

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", "configs/vp/digits_ddpmpp_continuous.py", "The experiment of --workdir."
)
flags.DEFINE_string(
    "workdir", None, "Where a digits model was trained; without it, only the mixture is measured."
)
flags.DEFINE_bool("write", False, "Write docs/sampling.md and docs/sampling.png.")
flags.DEFINE_string(
    "results", None, "A JSON file of what has been measured: it is read, and completed."
)
flags.DEFINE_integer("samples", 4000, "Samples of the mixture for each sampler.")
flags.DEFINE_integer("digits", 500, "Samples of the digits model for each sampler.")

CORRECTED = {
    "vesde": {"predictor": "reverse_diffusion", "snr": 0.16},
    "vpsde": {"predictor": "euler_maruyama", "snr": 0.01},
    "subvpsde": {"predictor": "euler_maruyama", "snr": 0.01},
}
PEERS = {
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc_2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}


# --- a law whose score is known ---------------------------------------------------------------------------------------


class Law:
    """Ten equally likely Gaussians in 8x8x1: pixel means and variances of each class of the dequantized digits."""

    shape = (8, 8, 1)

    def __init__(self) -> None:
        digits = load_digits()
        x = 2 * (digits.data + 0.5) / 17 - 1
        classes = [x[digits.target == k] for k in range(10)]
        self.means = np.stack([c.mean(0) for c in classes]).astype(np.float32)
        self.vars = np.stack([c.var(0) + (2 / 17) ** 2 / 12 for c in classes]).astype(np.float32)

    def sample(self, seed: int, n: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.integers(0, 10, n)
        return self.means[k] + np.sqrt(self.vars[k]) * rng.normal(size=(n, 64))

    def score(self, sde: SDE) -> Score:
        """The exact score; one time for the whole batch costs matrix products only."""

        def of_components(t: Array) -> tuple[Array, Array]:
            alpha = sde.alpha(t)
            return alpha * self.means, alpha**2 * self.vars + sde.var(t)

        def together(x: Array, t: Array) -> Array:
            mean, var = of_components(t[0])
            logits = x @ (mean / var).T - 0.5 * (
                x**2 @ (1 / var).T + (mean**2 / var + jnp.log(var)).sum(-1)
            )
            weights = jax.nn.softmax(logits)
            return weights @ (mean / var) - weights @ (1 / var) * x

        def one(x: Array, t: Array) -> Array:
            mean, var = of_components(t)
            pulls = (mean - x) / var
            return jax.nn.softmax(-0.5 * (pulls**2 * var + jnp.log(var)).sum(-1)) @ pulls

        def score(x: Array, t: Array) -> Array:
            flat = x.reshape(len(x), -1)
            return lax.cond(jnp.all(t == t[0]), together, jax.vmap(one), flat, t).reshape(x.shape)

        return score


def directions() -> np.ndarray:
    """(64, 128): the pixels, and as many random directions, of length 1."""
    u = np.random.default_rng(1).normal(size=(64, 64))
    return np.concatenate([np.eye(64), u / np.linalg.norm(u, axis=0)], 1)


def sliced(quantiles: np.ndarray, x: np.ndarray) -> float:
    """Wasserstein-2 distance along `directions`, as root mean square; quantiles (n, 128) of the law."""
    projected = np.sort(np.asarray(x, np.float64).reshape(len(x), -1) @ directions(), 0)
    if len(x) != len(quantiles):
        projected = np.quantile(
            projected, (np.arange(len(quantiles)) + 0.5) / len(quantiles), axis=0
        )
    return float(np.sqrt(np.mean((projected - quantiles) ** 2)))


def exact_quantiles(law: Law, n: int) -> np.ndarray:
    """Quantiles (i + 1/2) / n of the law along `directions`: mixtures of ten Gaussians on a line."""
    mean, std = law.means @ directions(), np.sqrt(law.vars @ directions() ** 2)
    grid = np.linspace((mean - 6 * std).min(0), (mean + 6 * std).max(0), 4000)
    cdf = norm.cdf((grid[:, None] - mean) / std).mean(1)
    levels = (np.arange(n) + 0.5) / n
    return np.stack([np.interp(levels, cdf[:, j], grid[:, j]) for j in range(grid.shape[1])], 1)


def weighted_quantiles(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Quantiles (i + 1/2) / n along `directions` of n images that count by their weights (n,)."""
    projected, levels = x.reshape(len(x), -1) @ directions(), (np.arange(len(x)) + 0.5) / len(x)
    order = np.argsort(projected, 0)
    middle = np.cumsum(weights[order], 0) - weights[order] / 2
    values = np.take_along_axis(projected, order, 0)
    return np.stack(
        [np.interp(levels, m / weights.sum(), v) for m, v in zip(middle.T, values.T)], 1
    )


# --- samplers ---------------------------------------------------------------------------------------------------------


def solver(name: str, schedule: str, budget: int) -> dict[str, Any] | None:
    """The settings of a few-step solver that come nearest to a budget of NFE from below; None if there are none."""
    steps = {
        "heun": (budget + 1) // 2,
        "heun_churn": (budget + 1) // 2,
        "restart": (budget - 3) // 2,
    }.get(name, budget)
    if name == "restart" and steps < 3:
        return None
    return {"method": "solver", "solver": name, "schedule": schedule, "num_steps": steps}


def references(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samplers of the paper, and the adaptive-step SDE."""
    yield PC, {"method": "pc", "corrector": "langevin", **CORRECTED[kind]}
    yield "predictor, 1000", {"method": "pc", "corrector": "none", **CORRECTED[kind]}
    yield "ode", {"method": "ode"}
    for tolerance in (0.05, 0.02, 0.01):
        yield (
            f"adaptive_sde {tolerance}",
            {"method": "solver", "solver": "adaptive_sde", "tolerance": tolerance},
        )


def on_mixture(
    law: Law, quantiles: np.ndarray, kind: str, name: str, options: dict[str, Any]
) -> Result:
    """Runs a sampler as a config describes it."""
    config = get_default_config()
    config.data.centered, config.training.sde = True, kind
    config.sampling.update(options)
    sde = factory.make_sde(config)
    sampler, score = factory.make_sampler(config, sde), law.score(sde)
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(len(quantiles)))
    run = jax.jit(
        lambda keys: sampler(keys, score, sampling.prior_sample(keys, sde, (len(keys), *law.shape)))
    )
    samples = run(keys)
    result = Result(
        NAMES[kind], name, float(np.asarray(samples.nfe).mean()), sliced(quantiles, samples.x)
    )
    print(f"{result.sde} {name}: {result.nfe:.0f} NFE, {result.distance:.4f}", flush=True)
    return result


def mixture_results(kind: str) -> list[Result]:
    """All samplers: at 10 and 20 NFE every solver on every schedule, at other budgets on its best one."""
    law, quantiles = Law(), exact_quantiles(Law(), FLAGS.samples)
    measure = functools.partial(on_mixture, law, quantiles, kind)
    exact = [sliced(quantiles, law.sample(seed, FLAGS.samples)) for seed in range(20)]
    results = [Result(NAMES[kind], "floor", 0, float(np.mean(exact)), float(np.std(exact, ddof=1)))]
    results += [measure(name, options) for name, options in references(kind)]
    for name in solvers.SOLVERS:
        known = {}
        for schedule in solvers.SCHEDULES:
            settings = [solver(name, schedule, budget) for budget in (10, 20)]
            known[schedule] = [
                measure(f"{name} {schedule}", options) for options in settings if options
            ]
        best = min(
            known, key=lambda schedule: np.prod([result.distance for result in known[schedule]])
        )
        others = (solver(name, best, budget) for budget in BUDGETS if budget not in (10, 20))
        results += [result for schedule in known.values() for result in schedule]
        results += [measure(f"{name} {best}", options) for options in others if options]
    return results


# --- the digits -------------------------------------------------------------------------------------------------------


def digits_results() -> list[Result]:
    """Samples of the trained model against the held-out digits; spreads are those of resampling the samples."""
    pixels = lambda images: np.asarray(images, np.float64) / 127.5 - 1
    experiment = Experiment(Config(FLAGS.config.to_dict()))
    checkpoints = Checkpoints(FLAGS.workdir)
    params = checkpoints.restore(checkpoints.pick(None), {"ema": experiment.abstract_params})["ema"]
    grey = lambda images: pixels(np.round(images * (255 / 16)).astype(np.uint8))
    held_out, train = grey(experiment.test.pixels), grey(experiment.train.pixels)
    labels = load_digits().target
    is_test = np.arange(len(labels)) % 5 == 4  # As in readers.scikit_learn.
    share, theirs = (np.bincount(labels[part]) / part.sum() for part in (~is_test, is_test))
    quantiles = weighted_quantiles(held_out, (share / theirs)[labels[is_test]])
    reader = LogisticRegression(max_iter=2000).fit(train.reshape(len(train), -1), labels[~is_test])

    def judge(name: str, nfe: float, x: np.ndarray) -> Result:
        rng = np.random.default_rng(0)
        again = [sliced(quantiles, x[rng.integers(0, len(x), len(x))]) for _ in range(40)]
        read = reader.predict_proba(x.reshape(len(x), -1))
        frequencies = np.bincount(read.argmax(1), minlength=10) / len(x)
        notes = f"{read.max(1).mean():.3f}", f"{np.abs(frequencies - share).sum() / 2:.3f}"
        result = Result(
            "digits", name, nfe, sliced(quantiles, x), float(np.std(again, ddof=1)), notes
        )
        print(
            f"digits {name}: {nfe:.0f} NFE, {result.distance:.4f} +- {result.spread:.4f}, {notes}",
            flush=True,
        )
        return result

    def measure(name: str, options: dict[str, Any], **model: Any) -> Result:
        config = Config(FLAGS.config.to_dict())
        config.sampling.update(options)
        config.model.update(model)
        samples = Experiment(config).sample_images(params, 0, FLAGS.digits)
        return judge(name, float(samples.nfe.mean()), pixels(samples.x))

    some = np.random.default_rng(0).permutation(len(train))[: FLAGS.digits]
    results = [judge("training digits", 0, train[some])]
    results += [measure("the config's own", {})]
    for name in solvers.SOLVERS:
        for budget in (5, 10, 20, 50) if name == BEST else (10, 20):
            if options := solver(name, BEST_SCHEDULE, budget):
                results.append(measure(f"{name} {BEST_SCHEDULE}", options))
    results.append(
        measure(
            "adaptive_sde 0.05", {"method": "solver", "solver": "adaptive_sde", "tolerance": 0.05}
        )
    )
    return [*results, measure(PC, dict(references("vpsde"))[PC], num_scales=1000)]


# --- diffusers --------------------------------------------------------------------------------------------------------


def peer_rows() -> list[str]:
    """The same probability flow of the VP SDE, with the same noise levels, by diffusers' schedulers."""
    import diffusers
    import torch

    sde, shape = VPSDE(), (64, *Law.shape)
    score = jax.jit(Law().score(sde))
    x = jax.random.normal(jax.random.key(0), shape)

    def ours(name: str, levels: np.ndarray) -> np.ndarray:
        plan, prediction = (
            solvers.SOLVERS[name].plan(levels),
            solvers.SOLVERS[name].noise_prediction,
        )
        run = lambda x: solvers.few_step(
            None, score, sde, x, plan, levels[-1], noise_prediction=prediction
        )[1]
        return np.asarray(jax.jit(run)(x))

    def theirs(name: str, levels: np.ndarray) -> np.ndarray:
        kind, options = PEERS[name]
        scheduler = getattr(diffusers, kind)(use_karras_sigmas=True, **options)
        scheduler.set_timesteps(len(levels) - 1)
        scheduler.sigmas = torch.tensor(levels)
        times, state, states = sde.time_at(jnp.asarray(levels)), torch.tensor(np.asarray(x)), []
        for t, timestep in zip(times, scheduler.timesteps):
            noise = -sde.std(t) * score(
                jnp.asarray(state.numpy(), jnp.float32), jnp.full(len(x), t)
            )
            state = scheduler.step(torch.tensor(np.asarray(noise)), timestep, state).prev_sample
            states.append(state.numpy())
        return np.array(states)

    grid = lambda n, denoise: solvers.noise_levels(sde, "log_snr", n, denoise=denoise)
    rows = header(
        "solver", "NFE", "largest difference of states", "error, ours", "error, diffusers"
    )
    truths = {end: ours("dpm++_3m", grid(1000, end))[-1] for end in (True, False)}
    rms = lambda a: f"{np.sqrt(np.mean(a**2)):.2e}"
    for name in PEERS:
        for n in (10, 20):
            denoise = name != "deis"  # diffusers' one cannot reach level 0.
            levels, truth = grid(n, denoise), truths[denoise]
            a, b = ours(name, levels), theirs(name, levels)
            difference = f"{np.abs(a - b).max():.1e}"
            rows.append(
                row(f"`{name}`", str(n), difference, rms(a[-1] - truth), rms(b[-1] - truth))
            )
            print(rows[-1], flush=True)
    return rows


def measured() -> dict[str, list]:
    """All parts: {"vesde": [Result, ...], ..., "digits": ..., "peers": rows}, by way of the file of --results."""
    parts: dict[str, Callable[[], list]] = {
        kind: functools.partial(mixture_results, kind) for kind in NAMES
    }
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        parts["peers"] = peer_rows
    else:
        print(
            "diffusers or PyTorch is not installed (requirements-dev.txt): no comparison with its schedulers."
        )
    if FLAGS.workdir:
        parts["digits"] = digits_results
    else:
        print("No --workdir is given: the trained digits model is not measured.")
    path = Path(FLAGS.results) if FLAGS.results else None
    known = json.loads(path.read_text()) if path and path.exists() else {}
    for name, measure in parts.items():
        if name not in known:
            known[name] = measure()
            if path:
                path.write_text(json.dumps(known))
    return {
        name: rows if name == "peers" else [Result(*each) for each in rows]
        for name, rows in known.items()
    }


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    logging.set_verbosity(logging.WARNING)
    parts = measured()
    given = "".join(
        f" --{flag}={flag.upper()}" for flag in ("workdir", "results") if FLAGS[flag].value
    )
    command = f"python -m benchmarks.sampling_quality{given} --write"
    text = page(parts, {"command": command, "n": FLAGS.samples, "digits": FLAGS.digits})
    print(text)
    if FLAGS.write:
        Path("docs/sampling.md").write_text(text)
        draw(parts, "docs/sampling.png")


if __name__ == "__main__":
    app.run(main)
