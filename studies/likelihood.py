"""Error of the likelihood against network evaluations and time, beside the official recipe.

python -m studies.likelihood [TABLE ...] --folder=DIR [--images=32] [--write]

Prints tables of docs/likelihood.md, by default all of `TABLES`, and, with --write, puts them into
the page. The network of the digits is trained in DIR; `levels` takes those of zoo/.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import likelihood
from benchmarks import harness
from benchmarks.tables import header, row
from options import choose
from score_sde import TrainedModel
from sde_lib import SDE, VESDE, VPSDE, Score, SubVPSDE
from solvers import density, integrate
from studies import common
from studies.common import mean
from tests import mixture

OPTIONS = {"tables": [], "folder": "", "images": 32, "rounds": 5, "write": False}
TOLERANCES = (3e-2, 1e-2, 1e-3, 1e-4)
REFERENCE_TOLERANCE = 1e-5  # of the reference solution where log p is unknown
PROBES = (1, 4, 16)  # of each image, whose effect is measured
T_MINS = (1e-6, 1e-4, 3e-4, 1e-3, 3e-3)  # of the SDE, whose effect is measured
RK45 = functools.partial(integrate, rtol=1e-5, atol=1e-5)  # of the official code
NETWORKS = {"digits_vp": 64, "fashion_vp": 4, "emoji_vp": 2}  # and the number of images of each
LEVELS = (8, 16)  # fixed ones
LEVELS_REFERENCE = 1e-3  # tolerance of the solution that fixed levels are compared with
CLOSED = 16  # probes: the signs of up to so many levels permute them


class Problem(NamedTuple):
    """Images x (B, ...) whose likelihood is estimated with probes (B, k, ...) of the trace.

    `logp` (B,) is exact, or None if a solution at REFERENCE_TOLERANCE replaces it; `log_scale` is
    log dx/du, u being grey levels.
    """

    name: str
    score: Score
    sde: SDE
    x: Array
    probes: Array
    logp: Array | None = None
    log_scale: float = 0.0

    def solver(self, **options: Any) -> Callable[[], likelihood.Likelihood]:
        """Return the compiled `likelihood.log_likelihood`, which has these options."""
        # As a pytree, the score would have rows for each image.
        given = lambda x, t: self.score(x, t), self.sde, self.x, self.probes
        return jax.jit(lambda: likelihood.log_likelihood(*given, **options))

    def bits(self, found: likelihood.Likelihood) -> np.ndarray:
        dims = math.prod(self.x.shape[1:])
        return np.asarray(likelihood.bits_per_dim(found.per_probe, dims, self.log_scale))


def make_problem(name: str, model: TrainedModel, x: Array) -> Problem:
    """Return the problem of images of a model, with one Rademacher probe each."""
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), len(x)), x.shape)
    return Problem(name, model.score, model.sde, x, probes, log_scale=model.scaler.log_scale)


def mixture_problem(sde: SDE, count: int) -> Problem:
    """Return images of 4x4x1 from ten Gaussians of std 0.1 to 0.3, with the exact trace."""
    data = mixture.make(10, (4, 4, 1))
    x = data.sample(jax.random.key(0), count)
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), count), x.shape, "exact")
    name = f"mixture, {type(sde).__name__}"
    return Problem(name, data.score(sde), sde, x, probes, data.logp(sde, x, sde.t_min))


def digits_problem(folder: Path, count: int) -> Problem:
    """Return held-out digits, dequantized."""
    model = common.digits_network("vp.digits_ddpmpp_continuous", folder)
    pixels = jnp.asarray(common.images(model, "test").pixels[:count])
    x = model.scaler.dequantize(pixels, jax.random.uniform(jax.random.key(0), pixels.shape))
    return make_problem("digits, DDPM++, VPSDE", model, x)


def zoo_problem(name: str, count: int) -> Problem:
    """Return images, dequantized, with CLOSED probes each: held-out digits, or samples.

    Samples of the network, rounded to grey levels, need no data set. The probes of an image are one
    Rademacher probe with each row of signs. At any fixed level they are the same ones in another
    order, so that their mean has the error of the solver only.
    """
    model = common.load(f"zoo/{name}.safetensors")
    if name.startswith("digits"):
        pixels = common.images(model, "test").pixels[:count]
    else:
        pixels = model.to_images(model.sample(count, seed=0))
    found = make_problem(name, model, model.from_images(pixels, seed=0))
    signs = jnp.asarray(density.signs(CLOSED, found.x.shape[1:]), found.probes.dtype)
    return found._replace(probes=found.probes * signs)


def official(problem: Problem, solve: Callable[..., Any] = RK45) -> tuple[Array, Array]:
    """Estimate log p (B,) by the official recipe, and count its evaluations: `solve` in t.

    Steps are shared by the batch. It omits two costs of the official code in every evaluation: a
    second pass through the network, and a transfer to the host.
    """
    sde, x = problem.sde, problem.x

    def field(t: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
        def drift(x: Array) -> Array:
            s = problem.score(x, jnp.broadcast_to(t, x.shape[:1]))
            return sde.reverse_drift(s, x, t[None], probability_flow=True)

        dx, tangent = jax.linearize(drift, state[0])

        def trace(probe: Array) -> Array:
            return (probe * tangent(probe)).reshape(x.shape[0], -1).sum(-1)

        return dx, jax.vmap(trace)(probes.swapaxes(0, 1)).mean(0)

    state = jax.tree.map(lambda leaf: leaf[None], (x, jnp.zeros(x.shape[0])))
    (z, traces), nfe = solve(field, state, sde.t_min, sde.T, args=problem.probes[None])
    return sde.prior_logp(z[0]) + traces[0], jnp.broadcast_to(nfe, x.shape[:1])


def accuracies(options: argparse.Namespace) -> list[str]:
    """Return a row for each method, of three mixtures and of the digits, timed in turn."""
    figures = ("NFE", "error", "largest", "own estimate", "time")
    lines = header("Problem", "tolerance", *figures)
    mixtures = (mixture_problem(sde, options.images) for sde in (VESDE(), VPSDE(), SubVPSDE()))
    for problem in (*mixtures, digits_problem(Path(options.folder), options.images)):
        runs: dict[str, Any] = {"official": jax.jit(functools.partial(official, problem))}
        runs |= {f"{each:g}": problem.solver(tolerance=each) for each in TOLERANCES}
        truth = problem.logp
        if truth is None:
            truth = problem.solver(tolerance=REFERENCE_TOLERANCE)().logp
        results = {name: jax.block_until_ready(run()) for name, run in runs.items()}
        timed = {name: functools.partial(_seconds, run) for name, run in runs.items()}
        seconds = harness.alternate(timed, options.rounds)
        bits = math.prod(problem.x.shape[1:]) * math.log(2)
        for name, found in results.items():
            logp, nfe = found if name == "official" else (found.logp, found.nfe)
            error = np.asarray(logp - truth) / bits
            cells = [f"{each:.1e}" for each in (np.abs(error).mean(), np.abs(error).max())]
            cells.append("" if name == "official" else f"{float(found.error.mean()) / bits:.1e}")
            cells.append(f"{1 / harness.ratio(seconds, name, 'official'):.2f}")
            lines.append(row(problem.name, name, f"{float(nfe.mean()):.0f}", *cells))
            print(lines[-1], flush=True)
    return lines


def _seconds(run: Callable[[], Any]) -> float:
    return harness.seconds_of(lambda: jax.block_until_ready(run()))


def sensitivities(options: argparse.Namespace) -> list[str]:
    """Return the change of mean bits/dim of digits with the probes and t_min."""
    problem = digits_problem(Path(options.folder), options.images)
    keys = jax.random.split(jax.random.key(2), len(problem.x))

    def estimate(kind: str, count: int = 1, **changed: float) -> tuple[np.ndarray, float]:
        probes = likelihood.draw_probes(keys, problem.x.shape, kind, count)
        sde = dataclasses.replace(problem.sde, **changed)
        found = problem._replace(probes=probes, sde=sde).solver()()
        return problem.bits(found), float(found.nfe.mean())

    exact, default = estimate("exact"), estimate("Rademacher")
    cases = [("exact trace", exact, exact)]
    for kind in ("Rademacher", "Gaussian"):
        cases += [(f"{count} {kind}", estimate(kind, count), exact) for count in PROBES]
    for t_min in T_MINS:
        cases.append((f"t_min {t_min:g}", estimate("Rademacher", t_min=t_min), default))
    lines = header("", "bits/dim", "moves by", "spread of a probe", "NFE")
    for name, (bits, nfe), (other, _) in cases:
        change = "" if bits is other else str(mean((bits - other.mean(1)[:, None]).mean(1)))
        spread = f"{bits.std(1, ddof=1).mean():.4f}" if bits.shape[1] > 1 else ""
        lines.append(row(name, f"{bits.mean():.4f}", change, spread, f"{nfe:.0f}"))
    return lines


def levels(options: argparse.Namespace) -> list[str]:
    """Return a row for each network of the zoo and each way to choose the noise levels."""
    del options
    figures = ("NFE", "bits/dim", "mean error", "mean abs. error", "spread of a probe", "ratio")
    lines = header("Network", "levels", *figures)
    ways = {f"tolerance {each:g}": {"tolerance": each} for each in (LEVELS_REFERENCE, 3e-2)}
    ways |= {f"{each} fixed": {"tolerance": 0.0, "steps": each} for each in LEVELS}
    for name, count in NETWORKS.items():
        problem, truth, known = zoo_problem(name, count), None, math.nan
        for label, way in ways.items():
            found = problem.solver(**way)()
            bits = problem.bits(found)
            spread = float(bits.std(1, ddof=1).mean())
            if truth is None:
                truth, known = bits.mean(1), spread
            error = bits.mean(1) - truth
            cells = [label, f"{found.nfe.mean():.0f}", f"{bits.mean():.4f}", f"{error.mean():+.4f}"]
            cells += [f"{np.abs(error).mean():.4f}", f"{spread:.4f}", f"{known / spread:.1f}"]
            lines.append(row(name, *cells))
            print(lines[-1], flush=True)
    return lines


TABLES = {"accuracy": accuracies, "sensitivity": sensitivities, "levels": levels}


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    chosen = options.tables or list(TABLES)
    for name in chosen:
        choose(TABLES, name, "the table")
    return {name: TABLES[name](options) for name in chosen}


if __name__ == "__main__":
    common.run(main, OPTIONS, "likelihood.md")
