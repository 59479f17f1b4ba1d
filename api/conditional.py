"""`ConditionalPrior`: the prior of a network that is conditioned on classes, vectors or images.

`given(condition)` is the prior p(x | condition), whose methods are those of any prior. The methods
here take the condition as an argument, which is the same.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from flax import struct
from jax import Array

import sampling
from api import calibration
from api.arguments import FEWEST, LARGEST, Seed, as_array, as_rows, checked, is_traced, key_of, show
from api.calibration import Calibration
from api.posterior import BATCH_SIZE, Posterior
from api.prior import Prior
from controllable import guidance
from controllable.guidance import ALL_LEVELS, Interval
from errors import InputError
from models.building import Params
from models.conditions import UNCONDITIONAL, Condition, Kinds
from sde_lib import SDE, Score
from solvers.loop import GuidedScore, static

Apply = Callable[..., Array]
"""(params, x (B, ...), t (B,), condition or None) -> score (B, ...)."""

ClassLogProbs = Callable[[Params], guidance.LogProbs]
"""Parameters of a classifier -> log p_t(class | x)."""


@struct.dataclass(eq=False)  # jax.jit(score) needs a hash, which then is that of the object.
class NetworkScore:
    """The score of a network as a pytree of its parameters, given a condition or none.

    With a scale other than 1, it is guided: by `guide`, the score of a weaker network, if there is
    one; else, with a condition, by `classifier` or by the difference of the scores with and without
    the condition.
    """

    params: Params
    apply: Apply = static()
    sde: SDE = static()
    condition: Condition | None = None
    classifier: Params | None = None
    log_probs: ClassLogProbs | None = static(default=None)
    scale: float = static(default=1.0)
    interval: Interval = static(default=ALL_LEVELS)
    guide: NetworkScore | None = None

    def __call__(self, x: Array, t: Array) -> Array:
        return self.bind()(x, t)

    def bind(self) -> Score | GuidedScore:
        """Return the score as samplers take it, inside of a compiled program."""
        score = functools.partial(self.apply, self.params)  # It is not guided.
        options = {"scale": self.scale, "interval": self.interval}
        if self.guide is not None:
            weaker = functools.partial(self.guide.apply, self.guide.params)
            return guidance.autoguidance(score, weaker, self.condition, self.sde, **options)
        if self.condition is None:
            return lambda x, t: score(x, t, None)
        if self.classifier is None or self.log_probs is None:
            return guidance.classifier_free(score, self.condition, self.sde, **options)
        log_probs, classes = self.log_probs(self.classifier), self.condition.classes
        return guidance.classifier(score, log_probs, classes, self.sde, **options)


class ConditionalPrior(Prior):
    """A prior whose score is that of a network, with or without a condition.

    Attributes:
      kinds: what samples can be conditioned on.
      condition: what they are conditioned on, in rows for events in turn; None for nothing.
    """

    exact = False
    score: NetworkScore
    kinds: Kinds = UNCONDITIONAL
    condition: Condition | None = None

    @checked
    def given(
        self,
        condition: Any = None,
        *,
        classes: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        guide: ConditionalPrior | None = None,
    ) -> Self:
        """Return the prior p(x | condition), with the same methods; None leaves a part as it is.

        Args:
          condition: an array if the network takes one kind of condition; a `Condition`, or a
            dictionary of its fields, if it takes several. Leading axes count conditions, which
            belong to the events in turn: one condition for all events, or one for each.
          classes: the same as the condition `classes`.
          guidance_scale: the scale of guidance (arXiv:2207.12598), 1 for none.
          guidance_interval: the noise levels std / alpha in which the scale applies.
          guide: a weaker model that guides, such as an earlier snapshot (arXiv:2406.02507), instead
            of this one without the condition.

        Raises InputError for a condition of another kind, shape or type, or that is not finite, and
        for a guide of other events, another SDE or other conditions.
        """
        found, changes = copy.copy(self), {}
        found.__dict__.pop("std", None)  # It was estimated from other samples.
        if guidance_scale is not None:
            changes["scale"] = float(guidance_scale)
        if guidance_interval is not None:
            changes["interval"] = tuple(guidance_interval)
        if guide is not None:
            self._check_guide(guide)
            changes["guide"] = guide.score
        found.score = dataclasses.replace(self.score, **changes)
        if condition is not None or classes:
            found.condition = rows_of(condition, classes, self.kinds, self.event_shape)
        if found.score.guide and found.score.classifier and found.condition:
            raise InputError("guide cannot be combined with classes of a classifier.")
        return found

    def _check_guide(self, guide: Any) -> None:
        if not isinstance(guide, ConditionalPrior):
            raise InputError(
                f"guide = {show(guide)} must be a trained model, such as that of ss.load."
            )
        kinds = guide.kinds or self.kinds
        own = self.event_shape, self.sde, _described(self.kinds)
        for one, other in zip(own, (guide.event_shape, guide.sde, _described(kinds))):
            if one != other:
                raise InputError(f"guide has {other}, but this model has {one}; they must agree.")

    def _conditioned(self, condition: Any) -> Self:
        return self if condition is None else self.given(condition)

    def condition_rows(self, numbers: np.ndarray) -> Condition | None:
        return jax.tree.map(lambda rows: rows[numbers % len(rows)], self.condition)

    def paired_rows(self, count: int) -> Condition | None:
        found = {len(rows) for rows in jax.tree.leaves(self.condition)} - {1, count}
        if found:
            raise InputError(
                f"condition has {found.pop()} rows for {count} events; give one for all of them, "
                "or one for each."
            )
        return self.condition_rows(np.arange(count))

    def score_given(self, rows: Condition | None) -> NetworkScore:
        if rows is None and self.kinds.paired and not self.kinds.dropped:
            raise InputError(
                f"condition = None: the network is conditioned on {_described(self.kinds)}, and "
                "was trained without hiding it (model.class_dropout = 0). Pass condition=..."
            )
        return dataclasses.replace(self.score, condition=rows)

    @checked
    def sample(
        self,
        sample_shape: int | tuple[int, ...] = (),
        seed: Seed = 0,
        *,
        condition: Any = None,
        classes: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        guide: ConditionalPrior | None = None,
        **options: Any,
    ) -> Array:
        """Draw samples (*sample_shape, *event_shape); see `Prior.sample` for the options.

        Event i has condition i % len(condition), or class classes[i % len(classes)]. `given`
        describes the arguments, whose default is no guidance, and the errors.
        """
        model = self.given(
            condition,
            classes=classes,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guide=guide,
        )
        return Prior.sample(model, sample_shape, seed, **options)

    def log_prob(self, x: Array, *, condition: Any = None, **options: Any) -> Any:
        """Return log p(x | condition) in nats; see `Prior.log_prob` for the options.

        The condition is one for all events, or one for each, as for `given`.
        """
        return Prior.log_prob(self._conditioned(condition), x, **options)

    def encode(self, x: Array, *, condition: Any = None, **options: Any) -> Any:
        """Return the latent codes of events given a condition; see `Prior.encode`."""
        return Prior.encode(self._conditioned(condition), x, **options)

    def decode(self, z: Array, *, condition: Any = None, **options: Any) -> Any:
        """Return the events of latent codes given a condition; the inverse of `encode`."""
        return Prior.decode(self._conditioned(condition), z, **options)

    def posterior(self, *measurement: Any, condition: Any = None, **options: Any) -> Posterior:
        """Return the `Posterior` given a measurement and a condition; see `Prior.posterior`.

        The condition is one for all measurements, or one for each of them.
        """
        return Prior.posterior(self._conditioned(condition), *measurement, **options)

    @checked
    def calibrate(
        self,
        x: Array,
        condition: Any,
        samples: int = 63,
        seed: Seed = 0,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> Calibration:
        """Test p(x | condition) by the ranks of held-out x among samples given their conditions.

        In contrast to `Posterior.calibrate`, errors of the score are noticed, because the events
        are those of the data.

        Args:
          x: events (N, *event_shape) of the data, which the network was not trained on.
          condition: their conditions, one for each of them.
          samples: the number of samples given each condition.
          seed, sampler, steps, batch_size, options: those of `sample`.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        events, _ = as_rows("x", x, self.event_shape)
        model, count = self.given(condition), len(events)
        if count < FEWEST:
            raise InputError(f"x holds {count} events; a calibration needs {FEWEST} or more.")
        rows = model.paired_rows(count)
        if rows is None:
            raise InputError("condition = None: calibrate needs the condition of each event.")
        sample_key, rank_key = (jax.random.fold_in(key_of(seed), each) for each in range(2))
        model.condition = jax.tree.map(lambda leaf: np.repeat(leaf, samples + 1, 0), rows)
        chosen = self.make_sampler(sampler, steps, **options)
        drawn = model.draw(chosen, count * (samples + 1), sample_key, batch_size=batch_size).x
        known = [np.asarray(leaf, np.float32).reshape(count, -1) for leaf in jax.tree.leaves(rows)]

        def uniform(shape: tuple[int, ...]) -> np.ndarray:
            keys = sampling.image_keys(rank_key, np.arange(count))
            return np.asarray(sampling.uniform(keys, shape))

        drawn = np.reshape(drawn, (count, samples + 1, *self.event_shape))
        known = np.concatenate(known, 1)
        return calibration.judge_samples(np.asarray(events), drawn, known, uniform)


# --- conditions of a user -------------------------------------------------------------------------


def rows_of(
    condition: Any, classes: Sequence[int] | None, kinds: Kinds, event_shape: tuple[int, ...]
) -> Condition:
    """Return a condition of a user as rows (R, ...) of all kinds; see `ConditionalPrior.given`."""
    given = condition._asdict() if isinstance(condition, Condition) else condition
    if not isinstance(given, Mapping):
        # Of one kind; the check below reports an array for a network that takes several.
        given = {kinds.names[0] if len(kinds.names) == 1 else "an array": condition}
    named = {name: each for name, each in given.items() if each is not None}
    if classes:
        named["classes"] = tuple(classes)
    if "classes" in named and not kinds.num_classes:
        raise InputError(
            f"classes = {show(named['classes'])} need a class-conditional network, or a "
            "classifier: train one with --mode=train_classifier."
        )
    if named.keys() != set(kinds.names):
        found = ", ".join(map(str, named)) or "empty"
        raise InputError(
            f"condition is {found}, but the network is conditioned on {_described(kinds)}. Pass a "
            "dictionary with these names."
        )
    shapes = {"classes": (), "vector": (kinds.vector_size,)}
    shapes["image"] = (*event_shape[:-1], kinds.image_channels)
    rows = {name: _rows(name, each, shapes[name], kinds) for name, each in named.items()}
    count = max(map(len, rows.values()))
    if any(len(each) not in (1, count) for each in rows.values()):
        lengths = ", ".join(f"{len(each)} of {name}" for name, each in rows.items())
        raise InputError(f"condition has {lengths}; there must be as many of each kind, or one.")
    return Condition(**{name: each[np.arange(count) % len(each)] for name, each in rows.items()})


def _rows(name: str, value: Any, shape: tuple[int, ...], kinds: Kinds) -> Any:
    """Return the conditions of one kind as (R, *shape). Raises InputError if they do not fit."""
    is_class = name == "classes"
    kind, types = ("integers", "iu") if is_class else ("real numbers", "iufb")
    array: Any = value
    try:
        array = as_array(value)
        rows, _ = as_rows(name, array, shape)
        fits = array.dtype.kind in types
    except Exception:  # Objects of a user may raise anything when they are converted.
        rows, fits = value, False
    if not fits:
        raise InputError(
            f"condition: {name} = {show(array)} must be {kind} of shape {shape} for one event, "
            "and may have leading axes for several."
        )
    if is_traced(rows):
        return rows
    if is_class and not 0 <= rows.min() <= rows.max() < kinds.num_classes:
        raise InputError(
            f"classes = {show(value)} must be from 0 to {kinds.num_classes - 1}, the classes of "
            "this model."
        )
    if not bool((abs(rows) <= LARGEST).all()):
        raise InputError(f"condition: {name} must hold finite numbers up to {LARGEST:g}.")
    is_byte = name == "image" and rows.dtype == np.uint8
    return rows.astype(np.int32 if is_class else np.uint8 if is_byte else np.float32)


def _described(kinds: Kinds) -> str:
    """Return the kinds of condition for a message."""
    return " and ".join(f"{name} of size {kinds.sizes[name]}" for name in kinds.names) or "nothing"
