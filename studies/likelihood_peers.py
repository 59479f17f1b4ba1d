"""Likelihoods by other libraries with the same scores, and the variance of estimates of a trace.

python -m studies.likelihood_peers [TABLE ...] [--images=16] [--write]

Prints tables of docs/likelihood.md, by default all of `TABLES`, and, with --write, puts them into
the page. flow_matching is an optional PyTorch package (`pip install flow_matching torchdiffeq`).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.tables import header, row
from options import choose
from sde_lib import VPSDE, Score
from solvers import density
from studies import common
from studies.likelihood import (
    LEVELS_REFERENCE,
    REFERENCE_TOLERANCE,
    Problem,
    mixture_problem,
    official,
    zoo_problem,
)
from studies.posterior_cases import CALLS
from studies.posterior_torch import differentiable, load

OPTIONS = {"tables": [], "images": 16, "write": False}
NETWORK = "digits_vp"
LEVELS = 16  # fixed ones
DRAWS = 256  # of the probes, the same ones for each image
SEED = 0  # of PyTorch
Found = tuple[Any, Any]  # log p (B,) and evaluations


def ours(problem: Problem, steps: int | None) -> Found:
    found = problem.solver(steps=steps)()
    return found.logp, found.nfe


def tsit5(problem: Problem, steps: int | None) -> Found:
    """Solve in t by Tsit5 of diffrax, in equal steps or with the tolerances of its documentation.

    Ten steps are those of diffrax's example of a flow and of sbgm (github.com/homerjed/sbgm), which
    solves by diffrax. A hundred are those of Equinox's example of a diffusion model.
    """
    tolerant = diffrax.PIDController(rtol=1e-3, atol=1e-6)
    controller = diffrax.ConstantStepSize() if steps else tolerant

    def solve(field: Any, state: Any, t0: float, t1: float, args: Array) -> tuple[Any, Array]:
        state, args = jax.tree.map(lambda leaf: leaf[0], (state, args))
        times = t0, t1, (t1 - t0) / steps if steps else None
        given = diffrax.ODETerm(field), diffrax.Tsit5(), *times, state, args
        found = diffrax.diffeqsolve(*given, stepsize_controller=controller)
        # Six stages for each step, the first one, and two evaluations to choose an adaptive step.
        return found.ys, 6 * found.stats["num_steps"] + (1 if steps else 3)

    def one(x: Array, probes: Array) -> Found:
        return official(problem._replace(x=x[None], probes=probes[None]), solve)

    logp, nfe = jax.vmap(one)(problem.x, problem.probes)
    return logp[:, 0], nfe


def drawn(problem: Problem) -> Problem:
    """Return a problem with the one probe of each image that `flow_matching` draws."""
    load("torch").manual_seed(SEED)
    noise = load("torch").randn(problem.x[:, None].shape).numpy()
    return problem._replace(probes=jnp.where(noise < 0, 1.0, -1.0))


def flow_matching(problem: Problem, method: str, step: float | None) -> Found:
    """Solve by flow_matching on its linear path y = r x_0 + (1 - r) noise, as its examples do.

    Its velocity is E[x_0 | y] - E[noise | y]. Its time s leads from t_min at 1 to T at 0.
    """
    torch, package = load("torch"), load("flow_matching.solver")
    sde, shape = problem.sde, problem.x.shape
    torch.set_num_threads(1)  # Threads of PyTorch and JAX would wait for each other.
    ends = jnp.array([sde.t_min, sde.T])
    one, zero = 1 / (1 + sde.noise_to_signal(ends))  # r where s is 1 or 0
    into, out_of = one / sde.alpha(ends[0]), zero / sde.alpha(ends[1])

    def velocity(y: Array, s: Array) -> Array:
        r = zero + (one - zero) * s
        t = sde.time_at((1 - r) / r)
        x = (y * sde.alpha(t) / r).reshape(shape)
        noise = -sde.std(t) * problem.score(x, jnp.full(len(x), t))
        clean = (x - sde.std(t) * noise) / sde.alpha(t)
        return (one - zero) * (clean - noise).reshape(y.shape)

    evaluate = differentiable(velocity)
    solver = package.ODESolver(lambda x, t: evaluate(x[:, None], float(t))[:, 0])
    y = torch.tensor(np.asarray(into * problem.x.reshape(len(problem.x), -1)))
    CALLS.clear()
    torch.manual_seed(SEED)
    exact = problem.probes.shape[1] > 1
    end, change = solver.compute_likelihood(y, lambda y: 0.0, step, method, exact_divergence=exact)
    logp = sde.prior_logp(jnp.asarray(end.numpy()).reshape(shape) / out_of)
    scaling = y.shape[1] * jnp.log(into / out_of)
    return logp + change.numpy() + scaling, np.array(CALLS["evaluations"])


METHODS = {
    "ours, tolerance 1e-3": ("Rademacher", ours, None),
    f"ours, {LEVELS} levels": ("Walsh", ours, LEVELS),
    "official, RK45 at 1e-5": ("Rademacher", official),
    "diffrax (flow) and sbgm, 10 steps": ("Gaussian", tsit5, 10),
    "Equinox (diffusion), 100 steps": ("Gaussian", tsit5, 100),
    "diffrax, rtol 1e-3, atol 1e-6": ("Gaussian", tsit5, None),
    "flow_matching, midpoint": ("Rademacher", flow_matching, "midpoint", 0.05),
    "flow_matching, dopri5 at 1e-5": ("Rademacher", flow_matching, "dopri5", None),
}
"""The kind of probes, the method and its options, by name."""


def peers(options: argparse.Namespace) -> list[str]:
    """Return a row for each method, of a mixture with known density and of a network.

    Errors of the network's are those with the same probes: with those of `zoo_problem` for levels
    whose signs differ, and else with the one that flow_matching draws.
    """
    lines = header("Scores", "method", "probe", "evaluations", "error", "largest")
    mixture, walsh = mixture_problem(VPSDE(), options.images), zoo_problem(NETWORK, options.images)
    one = drawn(walsh)
    one = one._replace(logp=one.solver(tolerance=REFERENCE_TOLERANCE)().logp)
    walsh = walsh._replace(logp=walsh.solver(tolerance=LEVELS_REFERENCE)().logp)
    for single, several in ((one, walsh), (mixture, mixture)):
        for name, (kind, solve, *way) in METHODS.items():
            if solve is flow_matching and importlib.util.find_spec("flow_matching") is None:
                print("flow_matching is not installed: a row is left out.")
                continue
            problem = several if kind == "Walsh" else single
            logp, nfe = solve(problem, *way)
            error = np.abs(logp - problem.logp) / (problem.x[0].size * math.log(2))
            cells = [f"{np.mean(nfe):.0f}", f"{error.mean():.1e}", f"{error.max():.1e}"]
            lines.append(row(problem.name, name, kind, *cells))
            print(lines[-1], flush=True)
    return lines


# --- estimates of a trace -------------------------------------------------------------------------


def hutchinson(matrices: np.ndarray, probes: np.ndarray) -> float:
    """Estimate the sum of the traces of matrices (L, D, D) by probes (L, D, m)."""
    return float(np.sum(probes * (matrices @ probes))) / probes.shape[2]


def hutch_pp(matrices: np.ndarray, probes: np.ndarray) -> float:
    """Estimate it by Hutch++ (arXiv:2010.09649), whose 2 m probes take 3 m products."""
    sketch, rest = np.split(probes, 2, axis=2)
    q = np.linalg.qr(matrices @ sketch)[0]
    within = q.shape[2] * hutchinson(matrices, q)
    return within + hutchinson(matrices, rest - q @ (q.swapaxes(1, 2) @ rest))


def jacobians(problem: Problem, known: Score) -> list[np.ndarray]:
    """Return matrices (B, L, D, D) whose traces sum to -bits/dim, up to a constant.

    They are the Jacobians of `density.solve_in_steps`, of the problem's score and of a known one.
    """
    scale, rule, size = density.TIME_SCALE, density.levels(LEVELS), problem.x[0].size
    ends = density.find_endpoints(problem.sde, scale)
    length = ends.s[1] - ends.s[0]
    fields = [density.vector_field(each, problem.sde, scale) for each in (problem.score, known)]

    def step(carry: Any, row: Any) -> tuple[Any, list[Array]]:
        (u, older), (node, weight, order3) = carry, row

        def slope(u: Array, field: Any) -> Array:
            return length * field(ends.s[0] + length * node, (u, u, u), u[None])[0]

        known = jnp.concatenate([older[1:], slope(u, fields[0])[None]])
        found = [jax.jacfwd(slope)(u, each).reshape(size, size) for each in fields]
        change = jnp.tensordot(order3, known, 1)
        return (u + change, known), [weight * each / (size * math.log(2)) for each in found]

    def follow(x: Array) -> list[Array]:
        rows = tuple(jnp.asarray(each, jnp.float32) for each in rule[:3])
        return lax.scan(step, (x / ends.scale[0], jnp.zeros((3, *x.shape))), rows)[1]

    return [np.asarray(each) for each in jax.jit(lambda x: lax.map(follow, x))(problem.x)]


def gaussian_score(problem: Problem) -> Score:
    """Return the score of a Gaussian with the mean and the covariance of the training images."""
    model, sde = common.load(f"zoo/{NETWORK}.safetensors"), problem.sde
    x = model.from_images(common.images(model, "train").pixels[:], seed=1)
    flat = np.asarray(x).reshape(len(x), -1)
    mean, (variances, axes) = flat.mean(0), np.linalg.eigh(np.cov(flat.T))

    def score(x: Array, t: Array) -> Array:
        alpha, var = sde.alpha(t)[:, None], sde.var(t)[:, None]
        rows = (x.reshape(len(x), -1) - alpha * mean) @ axes
        return -((rows / (alpha**2 * variances + var)) @ axes.T).reshape(x.shape)

    return score


def traces(options: argparse.Namespace) -> list[str]:
    """Return a row for each estimate of the trace of the network's Jacobians."""
    problem, rng = zoo_problem(NETWORK, options.images), np.random.default_rng(0)
    full, known = jacobians(problem, gaussian_score(problem))
    walsh = density.signs(LEVELS, problem.x.shape[1:]).reshape(LEVELS, -1, 1)
    sides = np.ones_like(walsh), walsh
    lines, first = header("Estimate", "signs", "products", "spread", "ratio"), 0.0
    cases = [
        ("Rademacher", full, hutchinson, 1, 1),
        ("Rademacher less a Gaussian's score", full - known, hutchinson, 1, 1),
        ("Hutch++", full, hutch_pp, 2, 3),
        ("Hutch++", full, hutch_pp, 8, 12),
    ]
    for (name, matrices, estimate, count, products), signs in itertools.product(cases, sides):
        draws = rng.choice([-1, 1], (DRAWS, walsh.shape[1], count))
        values = [[estimate(each, signs * draw) for draw in draws] for each in matrices]
        found = np.std(values, axis=1, ddof=1).mean()
        first = first or found
        cells = ["Walsh" if signs is walsh else "shared", str(products), f"{found:.4f}"]
        lines.append(row(name, *cells, f"{first / found / math.sqrt(products):.1f}"))
    return lines


TABLES = {"peers": peers, "traces": traces}


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    chosen = options.tables or list(TABLES)
    return {name: choose(TABLES, name, "the table")(options) for name in chosen}


if __name__ == "__main__":
    common.run(main, OPTIONS, "likelihood.md")
