"""Tiny experiments that tests run through the real training and evaluation code."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

import datasets
import sharding
import training
from configs.folders import claim
from datasets import Images
from experiment import Experiment
from readers import scikit_learn
from runs.checkpoints import SNAPSHOTS, Checkpoints


def noise(split: str, config: ml_collections.ConfigDict) -> Images:
    """Random images of the configured shape."""
    shape = (16, config.image_size, config.image_size, config.num_channels)
    return Images(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def black_and_white(split: str, config: ml_collections.ConfigDict) -> Images:
    """Black training images and white test images, each of which has another class."""
    shape = (16, config.image_size, config.image_size, config.num_channels)
    return Images(np.full(shape, 255 if split == "test" else 0, np.uint8), np.arange(16) % 10)


def few_digits(split: str, config: ml_collections.ConfigDict) -> Images:
    """The first 60 test images of the digits, or the first 360 training images, with labels."""
    images = scikit_learn.digits(split, config)
    count = 60 if split == "test" else 360
    return Images(images.pixels[:count], images.labels[:count])


datasets.DATASETS["noise"] = noise
datasets.DATASETS["black_and_white"] = black_and_white
datasets.DATASETS["few_digits"] = few_digits
datasets.LEVELS["few_digits"] = datasets.LEVELS["digits"]


MLP = {"model.name": "mlp", "model.nf": 16}
"""Changes of a config for tests whose subject is no network: this one compiles fast."""


def config(name: str = "vp.digits_ddpmpp_continuous", **changes) -> ml_collections.ConfigDict:
    """Return the digits experiment reduced to run in seconds, with `changes` by field name."""
    c = importlib.import_module(f"configs.{name}").get_config()
    c.model.update(
        nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_scales=21, dropout=0.1
    )
    c.training.update(batch_size=16, n_iters=6, log_freq=2, eval_freq=3, snapshot_sampling=False)
    c.training.update(snapshot_freq=4, snapshot_freq_for_preemption=2, n_jitted_steps=1)
    c.optim.update(lr=1e-3, warmup=2)
    c.eval.update(batch_size=120, num_samples=10, enable_metrics=False)
    c.update_from_flattened_dict(changes)
    return c


def random_params(experiment: Experiment, like: Any = None, scale: float = 0.1) -> Any:
    """Return random parameters of a network, or of the shapes of `like`, replicated."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: scale * rng.normal(size=a.shape).astype(a.dtype),
        experiment.abstract_params if like is None else like,
    )
    return jax.device_put(params, sharding.replicated(experiment.mesh))


@contextlib.contextmanager
def shared_steps() -> Iterator[None]:
    """Let runs of the same config, on equal devices, share one compiled training step."""
    compile_steps, known = training.loop.compile_steps, {}

    def shared(job: training.Job, rollbacks: int = 0) -> Any:
        fields = job.experiment.config.to_dict()
        del fields["training"]["n_iters"]
        shapes = [leaf.shape for leaf in jax.tree.leaves(job.abstract_params)]
        key = json.dumps([fields, shapes, rollbacks, job.experiment.mesh.size])
        if key not in known:
            known[key] = compile_steps(job, rollbacks)
        return known[key]

    training.loop.compile_steps = shared
    try:
        yield
    finally:
        training.loop.compile_steps = compile_steps


def save(folder: Path, experiment: Experiment, number: int, step: int, **trees: Any) -> None:
    """Save a snapshot in a workdir of this experiment."""
    claim(folder, experiment.config, "training")
    checkpoints = Checkpoints(folder, create=True)
    checkpoints.save(SNAPSHOTS, number, trees, step=step, config=experiment.config.to_dict())
    checkpoints.close()


def untrained(folder: Path, number: int = 3, scale: float = 0.1, **changes) -> Path:
    """Make `folder` a workdir with one snapshot of random parameters of this scale."""
    experiment = Experiment(config(**changes))
    save(folder, experiment, number, 0, ema=random_params(experiment, scale=scale))
    return folder
