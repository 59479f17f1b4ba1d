"""Curves: the time and the scale in which a single-step solver takes straight steps.

A curve sets x = s(t) y and sigma(t), where y has noise of level sigma. The probability flow is then
dx/dt = s ((s'/s) y + sigma' n), with the noise n = (y - D) / sigma that the network predicts (EDM,
arXiv:2206.00364, Eq. (4)). Solvers that step in x and t have different errors on different curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from errors import InputError


class Curve(NamedTuple):
    """A curve, as functions of the noise level sigma, and of t for `level`.

    Attributes:
      time: t.
      level: t -> sigma.
      speed: sigma' = d sigma / dt, for sigma > 0.
      scale: s.
      scale_rate: s' / s, for sigma > 0.
    """

    time: Callable[[float], float]
    level: Callable[[float], float]
    speed: Callable[[float], float]
    scale: Callable[[float], float]
    scale_rate: Callable[[float], float]


def _constant(value: float) -> Callable[[float], float]:
    return lambda level: value


def _linear(levels: np.ndarray) -> Curve:
    """sigma = t: the straight lines of EDM."""
    return Curve(
        time=lambda level: level,
        level=lambda t: t,
        speed=_constant(1.0),
        scale=_constant(1.0),
        scale_rate=_constant(0.0),
    )


def _ve(levels: np.ndarray) -> Curve:
    """sigma = sqrt(t), for which the VE SDE has a constant diffusion."""
    return Curve(
        time=lambda level: level**2,
        level=math.sqrt,
        speed=lambda level: 1 / (2 * level),
        scale=_constant(1.0),
        scale_rate=_constant(0.0),
    )


def _vp(levels: np.ndarray) -> Curve:
    """The VP SDE: log(1 + sigma^2) = slope t^2 / 2 + beta_min t, and s = 1 / sqrt(1 + sigma^2).

    The highest level is at t = 1 and the lowest positive one at 1e-3, as those of the paper's SDE
    are for beta from 0.1 to 20.
    """
    end, (lowest, highest) = 1e-3, np.log1p([levels[levels > 0].min() ** 2, levels.max() ** 2])
    slope = 2 * (highest - lowest / end) / (1 - end)
    if slope <= 0:
        raise InputError(
            f"curve = 'vp' needs lower noise levels than {levels[levels > 0].min():.4g}, "
            "the lowest one; raise sampling.num_steps, or use another curve."
        )
    beta_min = highest - slope / 2

    def time(level: float) -> float:
        root = math.sqrt(beta_min**2 + 2 * slope * math.log1p(level**2))
        return (root - beta_min) / slope if level else 0.0

    def speed(level: float) -> float:
        return (beta_min + slope * time(level)) / 2 * (level + 1 / level)

    return Curve(
        time=time,
        level=lambda t: math.sqrt(math.expm1(slope * t**2 / 2 + beta_min * t)),
        speed=speed,
        scale=lambda level: 1 / math.sqrt(1 + level**2),
        scale_rate=lambda level: -level * speed(level) / (1 + level**2),
    )


CURVES: dict[str, Callable[[np.ndarray], Curve]] = {"linear": _linear, "ve": _ve, "vp": _vp}
"""By `config.sampling.curve`: functions of the noise levels (n + 1,) that a curve connects."""
