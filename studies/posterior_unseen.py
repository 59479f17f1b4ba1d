"""Random mixtures, operators, noise levels and SDEs, which no default was chosen by.

A nonlinear operator is a function of two numbers z = matrix x. Their posterior is integrated on
squares, which are divided where it is not negligible. Given z, x is that of a linear measurement
without noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp, softmax

from benchmarks.records import Record
from benchmarks.tables import header, row
from score_sde import operators
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, RectifiedFlow, SubVPSDE
from studies.posterior_cases import Problem, linear_problem
from studies.posterior_priors import Mixture, random_modes

CASES = 50
AGAIN = 2, 23, 29, 34  # beyond the margins with fewer samples; they are measured with more
UNEVEN, NEW = (2, 41), range(CASES, CASES + 25)  # whose log p(y) is measured by `log_evidence`
SDES = VESDE(), VPSDE(), SubVPSDE(), EDMSDE(), RectifiedFlow()
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs(z)": abs,
    "z1 z2": lambda z: z[..., :1] * z[..., 1:],
    "z / sqrt(1 + z^2)": lambda z: z * (1 + z**2) ** -0.5,
}
KINDS = "linear", "mask", *FUNCTIONS
ENTRIES, WIDTHS, SPREAD, NOISE = (2, 20), (0.05, 0.5), (0.3, 1.5), (0.003, 1.0)
SQUARES, NEGLIGIBLE = 300, -40  # along each axis, at first; of logarithms, relative to the largest
MARGINS = {"weights": 0.02, "mean": 0.05}  # beyond the errors of exact draws
LARGEST_GAP, LEAST_SIZE = 0.2, 10  # of log p(y), where the effective size is as large (percent)


def settings(i: int) -> tuple[str, SDE, int, int, int, float]:
    """Return operator, SDE, entries, modes, rows of the matrix, and noise of case i.

    Any 25 cases in turn have all operators and SDEs.
    """
    rng, kind = np.random.default_rng([2026, i]), KINDS[i % len(KINDS)]
    entries = round(math.exp(rng.uniform(*np.log(ENTRIES))))
    rows = 2 if kind in FUNCTIONS else int(rng.integers(1, min(entries, 5) + 1))
    noise, modes = math.exp(rng.uniform(*np.log(NOISE))), int(rng.integers(2, 11))
    return kind, SDES[i // len(KINDS) % len(SDES)], entries, modes, rows, noise


@functools.cache
def unseen_problem(i: int, count: int, draws: int = 4096) -> Problem:
    """Return the problem of case i, with `count` measurements and exact draws of each."""
    (kind, sde, entries, modes, rows, noise), rng = settings(i), np.random.default_rng(i)
    weights, spread = rng.dirichlet(np.full(modes, 2.0)), rng.uniform(*SPREAD)
    prior, matrix = random_modes(weights, entries, spread, WIDTHS, rows, 1000 + i)
    operator = None
    if kind == "mask":
        known = np.sort(rng.permutation(entries)[:rows])
        matrix = np.eye(entries)[known]
        operator = operators.decompose(lambda x: x[known], (entries,))
    if kind not in FUNCTIONS:
        problem = linear_problem(prior, matrix, noise, rng, count, draws)
        return problem._replace(sde=sde, operator=operator)
    function, small = FUNCTIONS[kind], jnp.asarray(matrix, jnp.float32)
    clean = function(prior.draw(rng, count) @ matrix.T)
    y = clean + noise * rng.normal(size=clean.shape)
    found = [integrate(prior.measured(matrix), function, each, noise) for each in y]
    sets = []
    for centers, width, logs in found:
        chosen = rng.choice(len(logs), 2 * draws, p=softmax(logs))
        z = centers[chosen] + width * rng.uniform(-0.5, 0.5, (2 * draws, 2))
        sets.append(prior.given(matrix, z, rng).reshape(2, draws, entries))

    def shares(x: np.ndarray) -> np.ndarray:
        signs = (x @ matrix.T > 0) @ [1, 2]
        number = prior.logits(x).argmax(1) * 4 + signs
        return np.bincount(number, minlength=4 * modes) / len(x)

    exact, others = np.stack(sets, 1)
    log_evidence = np.array([logsumexp(logs) for *_, logs in found])
    problem = Problem(prior, matrix, noise, y, exact, others, [shares] * count, log_evidence)
    return problem._replace(operator=lambda x: function(small @ x), sde=sde)


def integrate(
    mixture: Mixture, function: Callable[[Any], Any], y: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squares of z (N, 2) given y (M,) = function(z) + noise.

    They are stated by their centers (N, 2), their sides (2,), and the logarithms (N,) of the
    probabilities that z is there and y is measured. In a square that is wide, y counts as if the
    change of the function across the square were noise, so that no mode is lost.
    """
    stds = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    low, high = (mixture.means - 8 * stds).min(0), (mixture.means + 8 * stds).max(0)
    sides = (high - low) / SQUARES
    narrowest = math.sqrt(np.linalg.eigvalsh(mixture.covariances).min())
    centers = low + sides * (np.indices((SQUARES, SQUARES)).reshape(2, -1).T + 0.5)
    quarters = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) / 4
    while True:
        values, prior = function(centers), logsumexp(mixture.logits(centers), axis=1)
        moves = sides / 2 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[:, None]
        change = 2 * np.abs(function(centers + moves) - values).max(0)
        wide = np.hypot(noise, change)
        kept = prior - 0.5 * np.square((y - values) / wide).sum(1)
        kept = kept > kept.max() + NEGLIGIBLE
        if (change[kept] <= noise).all() and (sides <= narrowest / 2).all():
            break
        centers = (centers[kept, None] + sides * quarters).reshape(-1, 2)
        sides = sides / 2
    logs = prior - 0.5 * np.square((y - values) / noise).sum(1)
    logs += np.log(sides).sum() - len(y) * math.log(noise * math.sqrt(2 * math.pi))
    return centers, sides, logs


def unseen_table(exact: Sequence[Record], found: Sequence[Record]) -> list[str]:
    """Return how many cases are within the margins, by the operator."""
    lines = header(
        *("operator", "cases", "weights and means within the margins"),
        *("log p(y) within the margin", "effective size, median (smallest)"),
    )
    excess = [max((a[k] - b[k]) / MARGINS[k] for k in MARGINS) for a, b in zip(found, exact)]
    sizes = np.array([each["sizes"] for each in found])
    for kind in (*KINDS, "all"):
        chosen = np.array([kind in (settings(i)[0], "all") for i in range(len(found))])
        close = within([each for each, is_chosen in zip(found, chosen) if is_chosen])
        size = f"{np.median(sizes[chosen]):.0f} % ({sizes[chosen].min():.1f} %)"
        good = (np.array(excess)[chosen] <= 1).sum()
        lines.append(row(kind, f"{chosen.sum()}", f"{good}", close, size))
    return lines


def within(found: Sequence[Record]) -> str:
    """Return in how many of the measurements with enough particles log p(y) is right."""
    sizes, gaps = (np.array([each[name] for each in found]) for name in ("sizes", "gaps"))
    trusted, right = sizes >= LEAST_SIZE, np.abs(gaps) <= LARGEST_GAP
    return f"{(right & trusted).sum()} of {trusted.sum()}"
