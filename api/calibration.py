"""Calibration of posterior samples: tests by simulation, with a verdict in one sentence.

`judge_weights` is the verdict on the weights of particles, for the y at hand.

For events x of the prior and measurements y of them, x and the samples given y follow the same
distribution. So the rank of a statistic of x among those of the samples is uniform
(simulation-based calibration: Talts et al. 2018, arXiv:1804.06788). The statistics are fixed random
projections and entries of x; log p(y | x), which notices samples that ignore y (Modrak et al. 2023,
arXiv:2211.02383); and the distance from a random reference point, whose rank gives the expected
coverage of balls (TARP: Lemos et al. 2023, arXiv:2302.03026). Ranks near 0 and 1 are too frequent
if samples are overconfident, that is, if their spread is too small.

Ranks that are uniform on average over y may still depend on y, for example if the weights of modes
are wrong in a way that changes with y. So ranks are also tested for independence of y, by
permutations of the Hilbert-Schmidt criterion (Gretton et al. 2007, "A kernel statistical test of
independence").

What is tested is the conditioning on y: x is drawn by the same score and sampler, so errors of the
score are not noticed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from api.arguments import checked
from controllable.smc import Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTIONS, ENTRIES = 8, 8  # statistics of each kind
LOG_PROB, DISTANCE = "log p(y | x)", "distance (TARP)"
SIGNIFICANCE = 0.01  # the probability that a correct posterior is called wrong
"""Half of it for tests of the ranks alone, and half for tests of their independence of y. With 20
simulations of one number it is 0.015, because the test of the spread is approximate; from 50
simulations on it is at most 0.01."""
INDEPENDENCE = ("dependence on y", "dependence on y of one statistic")
PERMUTATIONS = 1999
MOST_PAIRED = 1000  # simulations whose independence of y is tested; the cost is of second order
FEATURES = 64  # numbers that describe a measurement
RELIABLE = 0.1  # the effective sample size, as a share, below which samples are not trusted
LEVELS = np.linspace(0, 1, 41)  # credibility levels of the coverage curve


# --- statistics and ranks ---------------------------------------------------------------------


def directions(shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Return the statistics of events: unit vectors (K, N), N entries of an event, and names."""
    size = math.prod(shape)
    rng = np.random.default_rng(0)
    projections = rng.normal(size=(min(PROJECTIONS, size), size))
    if size == 1:
        projections = projections[:0]
    projections /= np.linalg.norm(projections, axis=1, keepdims=True)
    chosen = np.sort(rng.permutation(size)[:ENTRIES])
    names = [f"projection {i}" for i in range(len(projections))]
    for index in chosen:
        position = ", ".join(str(i) for i in np.unravel_index(index, shape))
        names.append(f"x[{position}]")
    return np.concatenate([projections, chosen[:, None] == np.arange(size)]), names


def ranks(truth: np.ndarray, samples: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the ranks (N, K) of truth (N, K) among samples (N, L, K), uniform in [0, 1] if right.

    A rank is the share of samples below the truth, spread evenly over the interval of width
    1 / (L + 1) that belongs to it, by random numbers u (N, K) in [0, 1). Values that differ by
    rounding only are ordered at random.
    """
    difference = samples - truth[:, None]
    spread = np.abs(difference).max(1, keepdims=True)
    rounding = 1e-6 * (np.abs(samples).max(1, keepdims=True) + np.abs(truth[:, None]))
    tied = np.abs(difference) <= 1e-5 * spread + rounding
    below = (difference < 0) & ~tied
    return (below.sum(1) + u * (tied.sum(1) + 1)) / (samples.shape[1] + 1)


class Simulated(NamedTuple):
    """Simulations: the ranks (N, K) of x among the samples, and `features` (N, M) of y."""

    ranks: np.ndarray
    y: np.ndarray


def features(y: np.ndarray) -> np.ndarray:
    """Return real numbers (N, M) that describe measurements y (N, ...), M at most FEATURES."""
    flat: Any = np.asarray(y).reshape(len(y), -1)
    if np.iscomplexobj(flat):
        flat = np.concatenate([flat.real, flat.imag], 1)
    flat, size = flat.astype(np.float32), flat.shape[1]
    if size <= FEATURES:
        return flat
    rng = np.random.default_rng(0)  # One vector at a time, since images can be large.
    vectors = (rng.standard_normal(size, np.float32) for _ in range(FEATURES))
    return np.stack([flat @ (vector / math.sqrt(size)) for vector in vectors], 1)


def independence(ranks: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return p-values of the independence of ranks (N, K) and features of y (N, M).

    The criterion of a statistic is the mean of k(y, y') f f' over pairs of simulations, for a
    Gaussian kernel k on standardized y, whose width is the median distance, and f the rank or its
    square, centered. The first p-value is that of the sum of all criteria, the second that of
    the largest one.
    """
    ranks, y = ranks[:MOST_PAIRED], y[:MOST_PAIRED]
    varying = y.std(0) > 0
    z = (y - y.mean(0))[:, varying] / y.std(0)[varying]
    products = z @ z.T
    squares = np.maximum(products.diagonal()[:, None] + products.diagonal() - 2 * products, 0)
    kernel = np.exp(-squares / max(np.median(squares), 1e-12))
    kernel -= kernel.mean(0) + kernel.mean(1)[:, None] - kernel.mean()
    moments = np.concatenate([ranks - 0.5, np.square(ranks - 0.5)], 1)
    moments = (moments - moments.mean(0)) / np.maximum(moments.std(0), 1e-12)
    order = np.random.default_rng(0).random((PERMUTATIONS + 1, len(y))).argsort(1)
    order[0] = np.arange(len(y))  # The criterion as it is, followed by permutations.
    kernel, columns = kernel.astype(np.float32), (each[order] for each in moments.T)
    rows = (each.astype(np.float32) for each in columns)
    criteria = np.stack([np.einsum("pn,pn->p", each @ kernel, each) for each in rows], 1)
    criteria /= criteria.std(0) + 1e-12
    joint, largest = criteria.sum(1), (criteria - criteria.mean(0)).max(1)
    return float(np.mean(joint >= joint[0])), float(np.mean(largest >= largest[0]))


# --- verdict ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The result of `Posterior.calibrate`.

    Attributes:
      ranks: (N, K) in [0, 1], of N simulations and K statistics.
      names: of the statistics.
      kind: 'calibrated', if no test rejects; 'overconfident', 'underconfident' or 'biased'.
      verdict: one sentence.
      p_values: of each statistic by the test of Kolmogorov and Smirnov; of 'spread', a test of the
        mean of (2 rank - 1)^2 over the statistics of x alone, which is 1/3 for uniform ranks; and
        those of `independence`.
    """

    ranks: np.ndarray
    names: list[str]
    kind: str
    verdict: str
    p_values: dict[str, float]

    @checked
    def coverage(self, level: float) -> tuple[float, float]:
        """Return how often central intervals of credibility `level` contain x, and its error.

        The mean is over the statistics of x alone, and its standard error over simulations.
        """
        inside = np.abs(2 * _of_x_alone(self.ranks, self.names) - 1) < level
        shares = inside.mean(1)
        return float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(len(shares)))

    def summary(self) -> dict:
        """Return the result as JSON stores it."""
        half, ninety = self.coverage(0.5), self.coverage(0.9)
        return {
            "verdict": self.verdict,
            "kind": self.kind,
            "simulations": len(self.ranks),
            "coverage_50": half[0],
            "coverage_50_stderr": half[1],
            "coverage_90": ninety[0],
            "coverage_90_stderr": ninety[1],
            "significance": SIGNIFICANCE,
            "p_values": self.p_values,
        }

    def content(self) -> dict:
        """Return `summary` and the ranks as JSON stores them."""
        return self.summary() | {"names": self.names, "ranks": self.ranks.round(6).tolist()}

    @checked
    def save(self, path: str | Path) -> None:
        """Write `content` as JSON."""
        Path(path).write_text(json.dumps(self.content(), indent=1) + "\n")

    def figure(self) -> Figure:
        """Plot the distribution of ranks, and coverage against credibility, with error bands."""
        # Each takes a fifth of the start of main.py.
        from matplotlib.figure import Figure
        from scipy import stats

        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        count = len(self.ranks)
        band = stats.kstwo.ppf(1 - SIGNIFICANCE, count)
        for axes, values, title, label in (
            (left, self.ranks, "Ranks (SBC, TARP)", "rank"),
            (right, np.abs(2 * self.ranks - 1), "Coverage of central intervals", "credibility"),
        ):
            axes.fill_between(
                LEVELS, LEVELS - band, LEVELS + band, color="0.85", label="99 % band if calibrated"
            )
            for column, name in enumerate(self.names):
                style = {"color": "C0", "label": None if column else "statistics"}
                if name == DISTANCE:
                    style = {"color": "C3", "label": name, "zorder": 3}
                axes.plot(LEVELS, (values[:, column, None] <= LEVELS).mean(0), linewidth=1, **style)
            axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
            axes.set(title=title, xlabel=label, ylabel="share of simulations", ylim=(0, 1))
        left.legend(loc="upper left", fontsize=8)
        figure.suptitle(self.verdict, fontsize=9, wrap=True)
        return figure


def judge(values: np.ndarray, names: list[str], y: np.ndarray | None = None) -> Calibration:
    """Return the verdict on ranks (N, K) of N simulations and K named statistics.

    With `features` (N, M) of the measurements, the independence of ranks and y is tested, too.
    """
    from scipy import stats  # As above.

    count, of_x = len(values), _of_x_alone(values, names)
    p_values = {
        name: float(stats.kstest(values[:, i], "uniform").pvalue) for i, name in enumerate(names)
    }
    spreads = np.square(2 * of_x - 1).mean(1)
    excess = (spreads.mean() - 1 / 3) / (spreads.std(ddof=1) / math.sqrt(count))
    p_values["spread"] = float(2 * stats.t.sf(abs(excess), count - 1))
    significance = SIGNIFICANCE / 2 / len(p_values)  # of one test
    paired = {} if y is None else dict(zip(INDEPENDENCE, independence(of_x, y)))
    kind = "calibrated"
    if min(p_values.values()) < significance or any(p < SIGNIFICANCE / 4 for p in paired.values()):
        kind = "biased"
    if p_values["spread"] < significance:
        kind = "overconfident" if excess > 0 else "underconfident"
    found = Calibration(values, names, kind, "", p_values | paired)
    return dataclasses.replace(found, verdict=_sentence(found))


def judge_samples(
    truth: np.ndarray,
    drawn: np.ndarray,
    y: np.ndarray,
    uniform: Callable[[tuple[int, ...]], np.ndarray],
) -> Calibration:
    """Return the verdict on samples drawn (N, L + 1, *event) given y (N, ...) of the truth.

    Distances are those from the last samples. `uniform` maps a shape to numbers in [0, 1).
    """
    vectors, names = directions(truth.shape[1:])
    flat, truth = (np.asarray(each, np.float64) for each in (drawn, truth))
    flat = flat.reshape(*flat.shape[:2], -1)

    def statistics(each: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(each - flat[:, -1:], axis=-1, keepdims=True)
        return np.concatenate([each @ vectors.T, distances], -1)

    true = statistics(truth.reshape(len(truth), 1, -1))[:, 0]
    values = ranks(true, statistics(flat[:, :-1]), uniform(true.shape))
    return judge(values, [*names, DISTANCE], features(y))


def detectable(values: np.ndarray, names: list[str]) -> tuple[float, float]:
    """Return the relative error of the spread, and the bias, that are found half of the time.

    The bias is that of one statistic, in standard deviations of its samples. For Gaussian
    posteriors whose samples have the right standard deviation times c, the mean of (2 rank - 1)^2
    is (2 / pi) arcsin(1 / (1 + c^2)); its slope by log(c) at 1 is -2 / (pi sqrt(3)). A shift of d
    standard deviations moves ranks by at most 2 Phi(d / 2) - 1.
    """
    from scipy import stats  # As above.

    count, tail = len(values), SIGNIFICANCE / 2 / (len(names) + 1)
    spreads = np.square(2 * _of_x_alone(values, names) - 1).mean(1)
    error = stats.t.isf(tail / 2, count - 1) * spreads.std(ddof=1) / math.sqrt(count)
    shift = stats.kstwo.isf(tail, count)
    return float(error * math.pi * math.sqrt(3) / 2), float(2 * stats.norm.ppf((1 + shift) / 2))


def _of_x_alone(values: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the columns of ranks (N, K) that are projections and entries of x."""
    return values[:, [i for i, name in enumerate(names) if name not in (LOG_PROB, DISTANCE)]]


def _sentence(found: Calibration) -> str:
    share, error = found.coverage(0.9)
    measured = (
        f"90 % intervals contain the truth in {100 * share:.1f} +- {100 * error:.1f} % of "
        f"{len(found.ranks)} simulations"
    )
    if found.kind == "calibrated":
        spread, bias = detectable(found.ranks, found.names)
        return (
            f"No miscalibration was found: {measured}. Errors below {100 * spread:.0f} % of the "
            f"spread, or {bias:.2f} standard deviations of a mean, can remain."
        )
    worst = min(found.p_values, key=lambda name: found.p_values[name])
    reasons = {
        "overconfident": "Overconfident: the spread of samples is too small",
        "underconfident": "Underconfident: the spread of samples is too large",
        "biased": "Biased: samples are not distributed as the truth is",
    }
    return f"{reasons[found.kind]}; {measured} (p = {found.p_values[worst]:.1g}, {worst})."


# --- weights --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Info:
    """How far to trust samples of a posterior; the arrays have the batch shape of y.

    Attributes:
      effective_size, log_evidence, log_evidence_error: see `controllable.smc.Weights`.
      reliable: whether `effective_size` is at least RELIABLE for all measurements.
      verdict: one sentence.
    """

    effective_size: np.ndarray
    log_evidence: np.ndarray
    log_evidence_error: np.ndarray
    reliable: bool
    verdict: str


def judge_weights(found: Weights, batch_shape: tuple[int, ...], particles: int) -> Info:
    """Return the verdict on weights (B,) of measurements."""
    arrays = [np.asarray(each, np.float64).reshape(batch_shape) for each in found]
    shares = arrays[0]
    low = int((shares < RELIABLE).sum())
    size = f"{100 * shares.min():.3g} % of {particles} particles"
    measured = f"the smallest effective sample size is {size}"
    if low:
        of = f"of {low} of {shares.size} measurements " if shares.size > 1 else ""
        verdict = (
            f"Samples and evidence {of}are not reliable: {measured}, below {100 * RELIABLE:g} %. "
            "Raise particles or steps."
        )
    else:
        verdict = f"No sign of an error was found: {measured}."
    _, value, error = arrays
    return Info(shares, value, error, not low, verdict)
