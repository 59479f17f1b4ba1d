"""Integrators: adaptive ones for black-box ODEs, and few-step solvers of the probability flow and the reverse SDE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import InputError, choose
from sde_lib import SDE

State = TypeVar("State")


def integrate(
    field: Callable[[Array, State, Any], State],
    y0: State,
    t0: float,
    t1: float,
    *,
    args: Any = None,
    rtol: float,
    atol: float,
) -> tuple[State, Array]:
    """Solves dy/dt = field(t, y, args) from t0 to t1 by Dormand-Prince 5(4), each image with its own step sizes.

    Args:
      field: of one image: t of shape (), y and args without batch axis.
      y0, args: states and constants, with a leading batch axis B on every leaf.

    Returns:
      y(t1), NaN for an image whose solve failed, and the number of evaluations of the field for each image (B,).
    """
    term = diffrax.ODETerm(field)
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def solve(y: State, args: Any) -> tuple[State, Array]:
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Dopri5(),
            t0,
            t1,
            None,
            y,
            args,
            stepsize_controller=controller,
            max_steps=2**14,
            throw=False,
        )
        good = solution.result == diffrax.RESULTS.successful
        y1 = jax.tree.map(lambda leaf: jnp.where(good, leaf[0], jnp.nan), solution.ys)
        # Six new stages a step, accepted or not; one evaluation at the start, two for the choice of the first step.
        return y1, 6 * solution.stats["num_steps"] + 3

    return jax.vmap(solve)(y0, args)


# --- few-step solvers -------------------------------------------------------------------------------------------------
#
# In y = x / alpha, every SDE here adds noise of level s = std / alpha to the data, and its probability flow is
# dy/ds = (y - D) / s with the denoiser D(y, s) = E[x_0 | y]. The solvers below are linear in y, in the network's
# predictions and in noise, with coefficients that follow from the levels alone: each can be written out beforehand.


class Plan(NamedTuple):
    """A solver written out: one row for each evaluation of the network; leaves are arrays of n rows.

    With z and z' standard normal and m the prediction, D or the noise (y - D) / level, a row does

        y = y + stir z                                                raises the noise level to `level`
        m = prediction at (y, level)
        y = stay y + back before + fix . (m, earlier predictions)     corrects y
        y = keep y + move . (m, earlier predictions) + blur z'        takes y to the level of the next row

    where `before` is the corrected y of the last row.
    """

    level: np.ndarray
    stir: np.ndarray
    stay: np.ndarray
    back: np.ndarray
    fix: np.ndarray  # (n, k)
    keep: np.ndarray
    move: np.ndarray  # (n, k)
    blur: np.ndarray


class Solver(NamedTuple):
    """A few-step solver.

    Attributes:
      plan: (levels (n + 1,), descending to 0 or to the level at which to stop; or ascending, to encode) -> Plan.
      noise_prediction: whether its plan combines predictions of the noise, else of the data.
      stochastic: whether it draws noise; the others are invertible.
      options: further arguments of `plan`, named as the fields of `config.sampling` from which they come.
    """

    plan: Callable[..., Plan]
    noise_prediction: bool = False
    stochastic: bool = False
    options: tuple[str, ...] = ()


def _blank(levels: Sequence[float], k: int) -> Plan:
    """Rows that evaluate the network and do nothing with it."""
    n = len(levels)
    return Plan(
        level=np.array(levels, np.float64),
        stir=np.zeros(n),
        stay=np.ones(n),
        back=np.zeros(n),
        fix=np.zeros((n, k)),
        keep=np.ones(n),
        move=np.zeros((n, k)),
        blur=np.zeros(n),
    )


def _order(i: int, levels: np.ndarray, highest: int) -> int:
    """Order of step i: at first there is little history, and a step to no noise is endless in log s."""
    return 1 if levels[i + 1] == 0 else min(highest, i + 1)


Weights = Callable[[np.ndarray, float], np.ndarray]
"""(r, h) -> weights of predictions: h is the step in lambda = -log s, r their lambdas from the present one on, in units
of h, so 0 and then negative for the past."""


def _past(levels: np.ndarray, i: int, order: int) -> tuple[np.ndarray, float]:
    h = float(np.log(levels[i] / levels[i + 1]))
    return np.log(levels[i] / levels[i - np.arange(order)]) / h, h


def _data_multistep(
    levels: np.ndarray, order: int, weights: Weights, *, k: int = 0, sde: bool = False
) -> Plan:
    """y = s'/s y + (1 - s'/s) w . D with the weights w; the SDE's form is that of SDE-DPM-Solver++, with (s'/s)^2."""
    rows = _blank(levels[:-1], k or order)
    for i, (level, target) in enumerate(itertools.pairwise(levels)):
        now = _order(i, levels, order)
        shrink = (target / level) ** (2 if sde else 1)
        rows.keep[i], rows.blur[i] = shrink, target * np.sqrt(1 - shrink) if sde else 0.0
        rows.move[i, :now] = (1 - shrink) * (
            weights(*_past(levels, i, now)) if now > 1 else np.ones(1)
        )
    return rows


def _midpoint(r: np.ndarray, h: float) -> np.ndarray:
    """DPM-Solver++(2M), Algorithm 2 of arXiv:2211.01095: extrapolates D to the middle of the step."""
    slope = np.array([1.0, -1.0]) / -r[1]
    return np.array([1.0, 0.0]) + 0.5 * slope


def _third(r: np.ndarray, h: float) -> np.ndarray:
    """DPM-Solver++(3M): the quadratic through three predictions, integrated with the exponential weight exactly."""
    if len(r) == 2:
        return _midpoint(r, h)
    r0, r1 = -r[1], r[1] - r[2]
    d0, d1 = np.array([1.0, -1.0, 0.0]) / r0, np.array([0.0, 1.0, -1.0]) / r1
    first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
    e = -np.expm1(-h)
    return np.array([1.0, 0.0, 0.0]) + ((1 - e / h) * first - ((h - e) / h**2 - 0.5) * second) / e


def _unipc(r: np.ndarray, h: float, *, corrector: bool = False) -> np.ndarray:
    """UniPC with B(h) = e^h - 1 (arXiv:2302.04867, Algorithms 5 to 8): the corrector's first weight is the new D's."""
    nodes = np.append(r[1:], 1.0) if corrector else r[1:]
    phi, moments = np.expm1(-h) / -h - 1, []
    for j in range(1, len(nodes) + 1):  # Integrals of powers with the exponential weight.
        moments.append(phi * math.factorial(j) / np.expm1(-h))
        phi = phi / -h - 1 / math.factorial(j + 1)
    rho = (
        np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
        if len(nodes) > 1
        else np.array([0.5])
    )
    change = rho / nodes
    past = change[: len(r) - 1]
    return np.concatenate([change[len(r) - 1 :], [1 - change.sum()], past])


def unipc(levels: np.ndarray, order: int) -> Plan:
    """UniPC: a multistep predictor, and a corrector that uses the prediction at the point it corrects once more."""
    rows = _data_multistep(levels, order, _unipc, k=order + 1)
    for i in range(1, len(rows.level)):
        shrink, now = levels[i] / levels[i - 1], _order(i - 1, levels, order)
        rows.stay[i], rows.back[i] = 0.0, shrink
        rows.fix[i, : now + 1] = (1 - shrink) * _unipc(*_past(levels, i - 1, now), corrector=True)
    return rows


def deis(levels: np.ndarray, order: int = 3) -> Plan:
    """DEIS (arXiv:2204.13902): polynomials in log s through the last predictions of the noise, integrated exactly."""
    rows = _blank(levels[:-1], order)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for i, (level, target) in enumerate(itertools.pairwise(levels)):
        now = _order(i, levels, order)
        if now == 1:
            rows.move[i, 0] = target - level
            continue
        past = np.log(levels[i - np.arange(now)])
        u = np.log(level) + (nodes + 1) / 2 * np.log(target / level)
        scale = weights / 2 * np.log(target / level) * np.exp(u)
        for j in range(now):
            others = np.delete(past, j)
            rows.move[i, j] = scale @ np.prod((u[:, None] - others) / (past[j] - others), 1)
    return rows


def heun(levels: np.ndarray, *, churn: float = 0.0, restart: Sequence[float] = ()) -> Plan:
    """Heun's method as in EDM (arXiv:2206.00364, Algorithms 1 and 2), two evaluations a step, one for a last step to 0.

    Args:
      churn: S_churn / n there: each step first adds noise that raises its level by min(churn / n, sqrt(2) - 1).
      restart: (number of levels, repetitions, least level, highest level): at the level nearest to the least one, noise
        up to the highest one is added and taken away again (Restart, arXiv:2306.14878).

    Raises InputError for a restart that is none.
    """
    gamma = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    segments = [
        (s, s * (1 + gamma) if s * (1 + gamma) <= levels[0] else s, to)
        for s, to in itertools.pairwise(levels)
    ]
    if restart:
        count, repetitions, least, highest = restart
        if not levels[0] >= highest > least > 0 or min(count, repetitions) < 1:
            raise InputError(
                f"sampling.restart = {tuple(restart)} must hold a number of levels, of repetitions, and two noise "
                f"levels, the lower one first, at most {levels[0]:.6g}."
            )
        place = int(np.argmin(np.abs(np.log(np.maximum(levels[:-1], 1e-9) / least))))
        way = karras(highest, levels[place], int(count))
        again = [
            (s if j else levels[place], s, to) for j, (s, to) in enumerate(itertools.pairwise(way))
        ]
        segments[place:place] = again * int(repetitions)
    rows = []
    for start, level, target in segments:
        first = _blank([level], 2)
        first.stir[0], first.move[0, 0] = math.sqrt(max(level**2 - start**2, 0.0)), target - level
        rows.append(first)
        if target > 0:
            second = _blank([target], 2)
            second.stay[0], second.back[0], second.fix[0] = 0.0, 1.0, (target - level) / 2
            rows.append(second)
    return Plan(*(np.concatenate(leaf) for leaf in zip(*rows)))


SOLVERS = {
    "ddim": Solver(partial(_data_multistep, order=1, weights=_midpoint)),
    "dpm++_2m": Solver(partial(_data_multistep, order=2, weights=_midpoint)),
    "dpm++_3m": Solver(partial(_data_multistep, order=3, weights=_third)),
    "dpm++_2m_sde": Solver(
        partial(_data_multistep, order=2, weights=_midpoint, sde=True), stochastic=True
    ),
    "unipc_2": Solver(partial(unipc, order=2)),
    "unipc_3": Solver(partial(unipc, order=3)),
    "deis": Solver(deis, noise_prediction=True),
    "heun": Solver(heun, noise_prediction=True),
    "heun_churn": Solver(heun, noise_prediction=True, stochastic=True, options=("churn",)),
    "restart": Solver(heun, noise_prediction=True, stochastic=True, options=("restart",)),
}


# --- noise levels -----------------------------------------------------------------------------------------------------


def karras(first: float, last: float, n: int, rho: float = 7.0) -> np.ndarray:
    """n levels from first to last, evenly spaced in level^(1 / rho) (EDM, Eq. (5))."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho


SCHEDULES: dict[str, Callable[[SDE, float, float, int], np.ndarray]] = {
    "time": lambda sde, first, last, n: _levels(sde, sde.sampling_times(n)),
    "log_snr": lambda sde, first, last, n: np.geomspace(first, last, n),
    "karras": lambda sde, first, last, n: karras(first, last, n),
}


def noise_levels(sde: SDE, schedule: str, n: int, *, denoise: bool = True) -> np.ndarray:
    """The n + 1 levels of n steps from time T to t_end and, with `denoise`, in the last step to 0; float64."""
    with jax.ensure_compile_time_eval():
        first, last = _levels(sde, jnp.array([sde.T, sde.t_end]))
        grid = choose(SCHEDULES, schedule, "sampling.schedule")(
            sde, first, last, n if denoise else n + 1
        )
    return np.append(grid, 0.0) if denoise else grid


def _levels(sde: SDE, t: Array) -> np.ndarray:
    return np.asarray(sde.noise_to_signal(t), np.float64)
