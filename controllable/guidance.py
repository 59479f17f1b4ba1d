"""Guidance: scores of events given a condition, for use with any sampler.

By Bayes' rule grad log p_t(x | c) = grad log p_t(x) + grad log p_t(c | x) (arXiv:2011.13456,
Eq. (14)). The first term is a score. The second is the gradient of a classifier of noised images
or, without a classifier, the difference of a network's scores with and without the condition. A
scale above 1 increases the weight of the second term: samples become more typical of their
condition and less diverse. In autoguidance a weaker network takes the place of the score without
the condition, so that samples become more typical of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from sde_lib import SDE, Score, expand
from solvers.loop import GuidedScore

ConditionalScore = Callable[[Array, Array, Any], Array]
"""(x (B, ...), t (B,), condition, or None for the unconditional score) -> score (B, ...)."""

LogProbs = Callable[[Array, Array], Array]
"""(x (B, ...), t (B,)) -> log p_t(class | x) in nats, for all classes (B, num_classes)."""

Interval = tuple[float, float]
"""The lowest and the highest noise level std / alpha at which the scale applies."""

ALL_LEVELS = (0.0, float("inf"))


def classifier(
    score: Score,
    log_probs: LogProbs,
    classes: Array,
    sde: SDE,
    *,
    scale: float = 1.0,
    interval: Interval = ALL_LEVELS,
) -> GuidedScore:
    """Classifier guidance: score + scale grad_x log p_t(class | x), Eq. (49).

    Args:
      classes: (B,), the class of each image.
      scale: the factor of the gradient (Dhariwal & Nichol 2021).
      interval: noise levels outside of which the scale is 1.
    """

    def function(x: Array, t: Array, classes: Array) -> Array:
        def log_prob(x: Array) -> Array:
            return jnp.take_along_axis(log_probs(x, t), classes[:, None], -1).sum()

        gradient = jax.grad(log_prob)(x)
        weight = jnp.where(_inside(sde, t, interval), scale, 1.0)
        return score(x, t) + expand(weight, x) * gradient

    return GuidedScore(classes, function)


def class_log_probs(logits: Callable[[Array, Array], Array], sde: SDE) -> LogProbs:
    """Return log p_t(class | x) of a classifier of images with added noise.

    The classifier receives x / alpha and the noise level std / alpha, which is correct for any SDE.
    The official code passes x and std, which is the same only for the VE SDE.

    Args:
      logits: (images + sigma z (B, ...), sigma (B,)) -> logits (B, num_classes).
    """

    def log_probs(x: Array, t: Array) -> Array:
        return jax.nn.log_softmax(logits(x / expand(sde.alpha(t), x), sde.noise_to_signal(t)))

    return log_probs


def classifier_free(
    score: ConditionalScore,
    condition: Any,
    sde: SDE,
    *,
    scale: float = 1.0,
    interval: Interval = ALL_LEVELS,
) -> GuidedScore:
    """Classifier-free guidance (Ho & Salimans 2022): s(x) + scale (s(x | c) - s(x)).

    Args:
      score: the score of a network that was trained with conditions and with dropped ones.
      condition: c, classes (B,) or any pytree of arrays (B, ...).
      interval: noise levels outside of which the scale is 1, so that only s(x | c) is evaluated
        (Kynkaanniemi et al. 2024).
    """

    def unconditional(x: Array, t: Array, condition: Any) -> Array:
        return score(x, t, None)

    return autoguidance(score, unconditional, condition, sde, scale=scale, interval=interval)


def autoguidance(
    score: ConditionalScore,
    weaker: ConditionalScore,
    condition: Any,
    sde: SDE,
    *,
    scale: float = 1.0,
    interval: Interval = ALL_LEVELS,
) -> GuidedScore:
    """Autoguidance (Karras et al. 2024, arXiv:2406.02507): w(x | c) + scale (s(x | c) - w(x | c)).

    `weaker` is the score w of a network with the errors of s, but larger ones, such as an earlier
    snapshot. The other arguments are those of `classifier_free`.
    """

    def guides(t: Array) -> Array:
        return _inside(sde, t, interval) & (scale != 1)

    def function(x: Array, t: Array, condition: Any) -> Array:
        conditional = score(x, t, condition)
        if scale == 1:
            return conditional
        inside = guides(t)
        difference = lax.cond(
            jnp.any(inside),
            lambda: conditional - weaker(x, t, condition),
            lambda: jnp.zeros_like(x),
        )
        return conditional + expand(jnp.where(inside, scale - 1, 0.0), x) * difference

    return GuidedScore(condition, function, lambda t: 1.0 + guides(t))


def _inside(sde: SDE, t: Array, interval: Interval) -> Array:
    level = sde.noise_to_signal(t)
    return (interval[0] <= level) & (level <= interval[1])
