"""Guidance: the score of images of a class. It is a score like any other, so every sampler takes it.

By Bayes' rule grad log p_t(x | c) = grad log p_t(x) + grad log p_t(c | x) (arXiv:2011.13456, Eq. (14)). The first term
is a score; the second is the gradient of a classifier of noised images or, without one, the difference of the scores of
a network that was trained with labels and without. A scale above 1 gives the second term more weight than Bayes does:
samples are more typical of their class, and less diverse.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from sde_lib import SDE, Score, expand

ClassScore = Callable[[Array, Array, Array | None], Array]
"""(x (B, ...), t (B,), classes (B,), or None for all images) -> score (B, ...)."""

LogProbs = Callable[[Array, Array], Array]
"""(x (B, ...), t (B,)) -> log p_t(class | x) of all classes, in nats (B, num_classes)."""

Interval = tuple[float, float]
"""Noise levels std / alpha at which the scale applies, ends included."""

EVERYWHERE = (0.0, float("inf"))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["classes"],
    meta_fields=["function", "evaluations"],
)
@dataclasses.dataclass(frozen=True)
class Guided:
    """The score of images of given classes, `guided(x, t)`: a pytree whose one leaf has a row for each image.

    Attributes:
      classes: (B,), ints.
      function: (x, t, classes) -> score.
      evaluations: times t -> evaluations of the network in one call, for each image; both of the same shape. What a
        classifier costs besides is not counted.
    """

    classes: Array
    function: Callable[[Array, Array, Array], Array]
    evaluations: Callable[[Array], Array]

    def __call__(self, x: Array, t: Array) -> Array:
        return self.function(x, t, self.classes)


def evaluations(score: Score, t: Array) -> Array:
    """Evaluations of the network for each call of a score at times t, of t's shape: 1, if it is not guided."""
    return getattr(score, "evaluations", jnp.ones_like)(t)


def classifier(
    score: Score,
    log_probs: LogProbs,
    classes: Array,
    sde: SDE,
    *,
    scale: float = 1.0,
    interval: Interval = EVERYWHERE,
) -> Guided:
    """Adds the gradient of a classifier of noised images: score + scale grad_x log p_t(class | x) (Appendix I).

    Args:
      classes: (B,), what each image is to be.
      scale, interval: the factor of the gradient (Dhariwal & Nichol 2021), and where it is not 1.
    """

    def function(x: Array, t: Array, classes: Array) -> Array:
        asked = lambda x: jnp.take_along_axis(log_probs(x, t), classes[:, None], -1)
        gradient = jax.grad(lambda x: asked(x).sum())(x)
        weight = jnp.where(_inside(sde, t, interval), scale, 1.0)
        return score(x, t) + expand(weight, x) * gradient

    return Guided(classes, function, jnp.ones_like)


def class_log_probs(logits: Callable[[Array, Array], Array], sde: SDE) -> LogProbs:
    """log p_t(class | x) by a classifier of images to which noise was added.

    Args:
      logits: (images + sigma z (B, ...), sigma (B,)) -> logits (B, num_classes). It is shown x / alpha with the noise
        scale std / alpha, which is right for any SDE. The official code shows x with std: the same for VE alone.
    """

    return lambda x, t: jax.nn.log_softmax(
        logits(x / expand(sde.alpha(t), x), sde.noise_to_signal(t))
    )


def classifier_free(
    score: ClassScore,
    classes: Array,
    sde: SDE,
    *,
    scale: float = 1.0,
    interval: Interval = EVERYWHERE,
) -> Guided:
    """Classifier-free guidance (Ho & Salimans 2022): s(x) + scale (s(x | class) - s(x)).

    Args:
      score: of a network that was trained with labels, of which some were hidden.
      classes: (B,), what each image is to be.
      interval: outside of it the scale is 1, so that s(x | class) alone is evaluated (Kynkaanniemi et al. 2024).
    """
    guides = lambda t: _inside(sde, t, interval) & (scale != 1)

    def function(x: Array, t: Array, classes: Array) -> Array:
        conditional, inside = score(x, t, classes), guides(t)
        difference = lambda: conditional - score(x, t, None)
        difference = (
            lax.cond(jnp.any(inside), difference, lambda: jnp.zeros_like(x)) if scale != 1 else 0.0
        )
        return conditional + expand(jnp.where(inside, scale - 1, 0.0), x) * difference

    return Guided(classes, function, lambda t: 1.0 + guides(t))


def _inside(sde: SDE, t: Array, interval: Interval) -> Array:
    level = sde.noise_to_signal(t)
    return (interval[0] <= level) & (level <= interval[1])
