"""Curves: the time and the scale in which a single-step solver takes straight steps.

A curve sets x = s(t) y and sigma(t), where y has noise of level sigma. The probability flow is then
dx/dt = s ((s'/s) y + sigma' n), with the noise n = (y - D) / sigma that the network predicts (EDM,
arXiv:2206.00364, Eq. (4)). Solvers that step in x and t have different errors on different curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

BETA_MIN, BETA_SLOPE = 0.1, 19.9  # of the VP SDE of arXiv:2011.13456


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


def _vp_time(level: float) -> float:
    """Solve log(1 + sigma^2) = BETA_SLOPE t^2 / 2 + BETA_MIN t."""
    root = math.sqrt(BETA_MIN**2 + 2 * BETA_SLOPE * math.log1p(level**2))
    return (root - BETA_MIN) / BETA_SLOPE


def _vp_level(t: float) -> float:
    return math.sqrt(math.expm1(BETA_SLOPE * t**2 / 2 + BETA_MIN * t))


def _vp_speed(level: float) -> float:
    beta = BETA_MIN + BETA_SLOPE * _vp_time(level)
    return beta / 2 * (level + 1 / level)


CURVES = {
    "linear": Curve(
        time=lambda level: level,
        level=lambda t: t,
        speed=_constant(1.0),
        scale=_constant(1.0),
        scale_rate=_constant(0.0),
    ),
    "ve": Curve(
        time=lambda level: level**2,
        level=math.sqrt,
        speed=lambda level: 1 / (2 * level),
        scale=_constant(1.0),
        scale_rate=_constant(0.0),
    ),
    "vp": Curve(
        time=_vp_time,
        level=_vp_level,
        speed=_vp_speed,
        scale=lambda level: 1 / math.sqrt(1 + level**2),
        scale_rate=lambda level: -level * _vp_speed(level) / (1 + level**2),
    ),
}
"""By `config.sampling.curve`."""
