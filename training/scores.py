"""Training of the score network of an experiment (`--mode=train`)."""

from __future__ import annotations

import functools

import jax
from jax import Array

import datasets
from configs.default import Config
from datasets import Batch
from experiment import Experiment
from losses import Part
from models.building import Params
from models.conditions import dropped
from models.layers import Rngs
from training import state
from training.loop import train_job
from training.state import TrainState
from training.step import Job


def train(config: Config, workdir: str) -> TrainState:
    """Train the experiment `config` in `workdir`, or continue: `training.loop.train_job`."""
    experiment = Experiment(config)
    if experiment.config.training.snapshot_sampling:
        experiment.load_classifier(workdir)
    return train_job(score_job(experiment), workdir)


def score_job(experiment: Experiment) -> Job:
    """Return the job that trains the score network of an experiment (Eq. (7))."""
    config = experiment.config

    def part(key: Array, batch: Batch) -> Part:
        data_key, noise_key, dropout_key = jax.random.split(key, 3)
        flip = config.data.random_flip
        x = experiment.prepare(data_key, batch.pixels, flip=flip)
        known = experiment.score_model.kinds.select(batch)
        if flip and known is not None and known.image is not None:
            # As the images of the data in `prepare`.
            image = datasets.flipped(jax.random.split(data_key)[0], known.image)
            known = known._replace(image=image)
        condition = dropped(jax.random.fold_in(key, 3), known, config.model.class_dropout)
        return Part(dropout_key, x, *experiment.draw(noise_key, x), condition)

    def loss(params: Params, part: Part) -> Array:
        return experiment.loss(params, part.x, part.t, part.z, Rngs(part.key), part.condition)

    model = config.model
    return Job(
        experiment,
        config.training,
        loss,
        part,
        experiment.held_out_loss,
        experiment.init_params,
        experiment.abstract_params,
        state.make_optimizer(**config.optim),
        experiment.key("train"),
        functools.partial(state.learning_rate, config.optim.lr, config.optim.warmup),
        functools.partial(state.ema_rate, model.ema_rate, model.ema_ramp),
        tuple(model.ema_stds),
        experiment.labelled,
        note=lambda step: state.initial_share_note(model.ema_rate, model.ema_ramp, step),
        samples=experiment.sample_grid if config.training.snapshot_sampling else None,
    )
