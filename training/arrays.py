"""Training from Python: a prior of events that are given as an array or in batches.

The arguments become a config, so that the training loop, its files and the rules about what may
continue in a workdir are those of `main.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from api.arguments import checked, show, user_code
from api.trained import TrainedModel
from configs import networks
from configs.default import COMPLETED_MODEL_FIELDS, Config, get_default_config
from configs.fields import FIELDS
from datasets import Batch, Images, check_labels
from errors import InputError, unknown_option
from experiment import Experiment
from models import NETWORKS
from models.adapters import network_of
from models.building import Params
from options import COUNT, GIVEN, Integer, check, choose, plain
from runs.training_log import FILE_NAME, Curve, best_snapshot, read_curves
from sde_lib import SDE, SDES
from training.events import FIRST, Stream, batch_of, check_same, images_of, is_stream, open_stream
from training.loop import train_job
from training.scores import score_job

NAMED = {
    "mlp": networks.mlp,
    "ddpmpp": networks.edm_ddpmpp,
    "ncsnpp": networks.edm_ncsnpp,
    "ddpm": networks.ddpm,
    "adm": networks.adm,
}
EVALUATIONS = 20  # held-out losses in a run
PATIENCE = 10  # of an MLP; fewer would often stop at a minimum of the noise of held-out losses
FEW = 10_000  # events, below which an MLP has dropout
FIELDS_OF = {
    "batch_size": "training.batch_size",
    "learning_rate": "optim.lr",
    "held_out": "data.held_out",
    "patience": "training.patience",
    "mean": "data.mean",
    "std": "data.std",
    "num_classes": "data.num_classes",
}
"""The config fields of options; other options are fields of config.model."""
DIGITS = 6  # of mean and std, so that other processors continue a run: sums depend on their order


@functools.partial(checked, steps=COUNT, seed=Integer(0, 2**32 - 1))
def train(
    data: Any,
    *,
    condition: Any = None,
    sde: str | SDE = "vpsde",
    network: Any = None,
    steps: int = 5000,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> TrainedModel:
    """Train a network on events; return the distribution that it has learned.

    Args:
      data: events (N, *event_shape) of real numbers, which are standardized: vectors by the mean
        and standard deviation of each entry, other events by those of all entries. uint8 images
        (N, H, W, C) are gray levels, as in `main.py`. Or an iterable of batches of equal size, or a
        function that returns one: each batch is events, or a pair of events and their condition,
        and a step of training. See `training.events.Stream`.
      condition: what each event is conditioned on, in which case the model is p(event | condition):
        vectors (N, d) or (N,), which are standardized, or images (N, H, W, C) of the height and
        width of the events; or a dictionary with `vector`, `image` and `classes` (N,), ints from 0.
      sde: an SDE, or its name in `sde_lib.SDES`, with or without 'sde'.
      network: the name of a network of this code, by default 'mlp' or, for events (H, W, C),
        'ddpmpp'; or a module of Flax NNX or Equinox (`models.adapters.network_of`).
      steps: training steps.
      seed: the root of all random numbers, also of the split into training and held-out events.
      workdir: the folder of checkpoints and of the log; by default a temporary one. The same call
        continues a run that was stopped, with the same result as without the stop.
      options: `batch_size`, `learning_rate`; `held_out`, the share of events for held-out losses,
        or other events, or a pair of events and their condition; `mean` and `std` of the data, and
        `num_classes`, which otherwise follow from the data or their first 10 batches;
        `patience`, after how many held-out losses without a new minimum training stops, and returns
        the parameters of the minimum (0 for never, by default 10 for 'mlp' and 0 for others); and
        fields of config.model, such as `nf`, `num_res_blocks`, `ema_rate` and `dropout` (by default
        0.1 for 'mlp' and fewer than FEW events, otherwise 0).

    Raises InputError for invalid arguments, before training starts, and a workdir of other data or
    another experiment; NotFiniteError if training diverges.
    """
    stream, first, held_out = _read(data, condition, workdir, options)
    if stream is None and len(first.pixels) < 2:
        raise InputError("data has one event; it must have at least two.")
    few = stream is None and len(first.pixels) < FEW
    config = _config(first, sde, network, steps, options, few=few)
    config.seed = seed
    if workdir is None:
        config.training.snapshot_freq_for_preemption = steps
    is_named = network is None or isinstance(network, str)
    experiment = Experiment(config, network=None if is_named else lambda _: network_of(network))
    _check_network(experiment)
    experiment.train, experiment.test = _split(config, stream, first, held_out)
    if workdir is not None:
        return _train_in(workdir, experiment)
    with tempfile.TemporaryDirectory() as folder:
        return _train_in(folder, experiment)


def _read(
    data: Any, condition: Any, workdir: Any, options: dict[str, Any]
) -> tuple[Stream | None, Batch, Batch | None]:
    """Return the stream, if data are one; the first events; and those of `held_out`, if they are.

    Changes the options `batch_size` of a stream, and `held_out`.
    """
    held_out, share = None, options.get("held_out")
    if isinstance(share, (tuple, list)) or np.ndim(share):  # pyright: ignore
        held_out = batch_of("held_out", options.pop("held_out"))
    if is_stream(data):
        given = {"condition": condition, **options}
        for name in ("condition", "batch_size", "held_out"):
            if given.get(name) is not None:
                raise InputError(
                    f"{name} = {show(given[name])} is for arrays, but data are batches, which have "
                    "a size and may be pairs (events, condition); held_out can be events."
                )
        if workdir is not None and isinstance(data, Iterator):
            raise InputError(
                "data is an iterator, which a stopped run cannot restart. Pass a function that "
                "returns one, or leave out workdir."
            )
        stream, first = open_stream(data, FIRST if held_out is None else 0)
        options["batch_size"] = len(stream)
    else:
        stream, first = None, batch_of("data", (data, condition))
    if held_out is not None:
        check_same("held_out", held_out, first)
    return stream, first, held_out


def _split(
    config: Config, stream: Stream | None, first: Batch, held_out: Batch | None
) -> tuple[Images, Images]:
    """Return the events for training, and those of held-out losses; see `train`."""
    train, test = images_of(first), images_of(held_out or first)
    if stream is not None:
        train = dataclasses.replace(stream, num_classes=config.data.num_classes)
    elif held_out is None:
        order = np.random.default_rng(config.seed).permutation(len(first.pixels))
        count = min(max(1, round(config.data.held_out * len(order))), len(order) - 1)
        train, test = images_of(first, order[count:]), images_of(first, order[:count])
    if config.data.num_classes:
        for each in (train, test):
            check_labels(each, config.data.num_classes, "num_classes")
    return train, test


def _train_in(workdir: str | Path, experiment: Experiment) -> TrainedModel:
    """Train, and return the model of the last step or, with patience, of the best one."""
    settings, state = experiment.config.training, train_job(score_job(experiment), workdir)
    curves = read_curves(Path(workdir) / FILE_NAME)  # Empty after a signal in the first steps.
    losses = curves.get("held_out/loss", Curve(np.zeros(0), np.zeros(0)))
    best, patience = int(np.argmin([*losses.values, np.inf])), settings.patience
    if int(state.step) < settings.n_iters and not 0 < patience < len(losses.values) - best:
        raise SystemExit(128 + signal.SIGTERM)  # The signal that has stopped training.
    if not patience:
        return experiment.trained_model(state.ema, int(state.step))
    found, ema = experiment.trained(workdir, best_snapshot(workdir, settings.snapshot_freq))
    return experiment.trained_model(ema, found.step)


# --- the config of the arguments ------------------------------------------------------------------


def _config(
    first: Batch, sde: str | SDE, network: Any, steps: int, options: dict[str, Any], *, few: bool
) -> Config:
    """Return the config of a run on data that begin with the events `first`; see `train`.

    `few` events are those of an array below FEW, which an MLP would learn by heart.
    """
    config, shape = get_default_config(), first.pixels.shape[1:]
    _set_data(config, first, given="std" in options)
    _set_sde(config, sde)
    model, training = config.model, config.training
    model.update(parameterization="edm", scale_by_sigma=False, dropout=0.0, ema_ramp=True)
    model.class_dropout = 0.0
    if network is None or isinstance(network, str):
        default = networks.mlp if len(shape) != 3 else networks.edm_ddpmpp
        (default if network is None else choose(NAMED, network, "network"))(model)
    else:
        model.name = GIVEN
    interval = -(-steps // EVALUATIONS)
    training.update(n_iters=steps, n_jitted_steps=1, batch_size=256, reduce_mean=True)
    training.update(time_distribution="log_normal", p_mean=math.log(0.6 * model.sigma_data))
    if model.name == "mlp":
        # Posteriors have narrow directions, which only low and widely spread noise levels show.
        training.update(p_mean=math.log(0.3 * model.sigma_data), p_std=1.6, patience=PATIENCE)
        model.update(vector_at="input", dropout=0.1 if few else 0.0)
    else:
        _set_levels(config, shape)
    training.update(log_freq=interval, eval_freq=interval, snapshot_sampling=False)
    config.optim.update(lr=1e-3, warmup=100)
    # The spread of 20 steps, the default, is too large by 3 %; small networks can afford more.
    config.sampling.update(method="solver", num_steps=50)
    _set_options(config, options)
    training.snapshot_freq = interval if training.patience else steps
    training.snapshot_freq_for_preemption = interval
    return config


def _set_data(config: Config, first: Batch, *, given: bool) -> None:
    """Describe events and condition: their sizes and, unless `given`, mean and deviation."""
    data, events = config.data, np.asarray(first.pixels)
    *sides, channels = events.shape[1:]
    data.update(dataset=GIVEN, num_channels=channels, random_flip=False, centered=True)
    data.image_size = tuple(sides)
    if first.labels is not None:
        data.num_classes = int(first.labels.max()) + 1
    if first.image is not None:
        data.image_channels = first.image.shape[-1]
    if first.vector is not None:
        data.vector_size = first.vector.shape[-1]
        data.vector_mean, data.vector_std = _units("condition", np.asarray(first.vector), 0)
    if events.dtype == np.uint8 and len(sides) == 2 and not given:
        data.uniform_dequantization = True
        return
    config.model.sigma_data = 1.0
    if not given:
        data.mean, data.std = _units("data", events, None if sides else 0)


def _units(name: str, values: np.ndarray, axes: int | None) -> list[tuple[float, ...]]:
    """Return the mean and the standard deviation of values over axes."""
    units = [f(values, axes, np.float64) for f in (np.mean, np.std)]
    if not np.all(units[1] > 0):
        where = np.flatnonzero(units[1] <= 0)[:3].tolist()
        raise InputError(
            f"{name} has entries that are the same in all events, number {where}; remove them."
        )
    return [tuple(float(f"{x:.{DIGITS}g}") for x in np.atleast_1d(each)) for each in units]


def _set_sde(config: Config, sde: str | SDE) -> None:
    """Name the SDE, and state its numbers if it is an object."""
    names = {kind: name for name, kind in SDES.items()}
    if isinstance(sde, str):
        short = {name.removesuffix("sde"): name for name in SDES}
        config.training.sde = choose(short, sde.lower().removesuffix("sde"), "sde")
    elif type(sde) in names:
        config.training.sde = names[type(sde)]
        config.model.update(dataclasses.asdict(sde))
    else:
        raise InputError(
            f"sde is an object of type {type(sde).__name__}; it must be a name, or of a class in "
            "sde_lib.SDES, where you can enter your own (docs/extending.md)."
        )


def _set_levels(config: Config, shape: tuple[int, ...]) -> None:
    """Choose a small U-Net, with as many levels as the sides of images can be halved, up to 3."""
    levels = 1
    while levels < 3 and all(side % 2**levels == 0 and side >> levels > 2 for side in shape[:-1]):
        levels += 1
    widths = (1, 2, 2)[:levels]
    config.model.update(nf=32, ch_mult=widths, num_res_blocks=1, attn_resolutions=(8,))


def _set_options(config: Config, options: dict[str, Any]) -> None:
    """Set the fields of `options`. Raises InputError for unknown ones, and invalid values."""
    name = config.model.name
    of_model = (*NETWORKS[name].fields, *COMPLETED_MODEL_FIELDS, "ema_rate")
    known = FIELDS_OF | {field: f"model.{field}" for field in of_model}
    for option, value in options.items():
        if option not in known:
            raise unknown_option(option, value, f"train with the network {name!r}", known)
        if option in ("mean", "std"):  # Arrays and numbers are possible, too.
            with user_code(option):
                value = np.ravel(value).tolist()
        check(option, value, FIELDS[known[option]].domain)
        section, _, field = known[option].partition(".")
        config[section][field] = plain(value)


def _check_network(experiment: Experiment) -> None:
    """Raise InputError if the network cannot be applied to events, or returns another shape."""
    x = jax.ShapeDtypeStruct((2, *experiment.image_shape), "float32")

    def apply(params: Params, x: Array) -> Array:  # Without a condition, whose kinds are then 0.
        network = nnx.merge(experiment.graph, params)
        return experiment.score_model.output(network, x, x.reshape(2, -1)[:, 0])

    with user_code(f"network cannot be applied to events of shape {x.shape} and labels (2,)"):
        output = jax.eval_shape(apply, experiment.abstract_params, x)
    if output.shape != x.shape:
        raise InputError(
            f"network returns the shape {output.shape} for events of shape {x.shape}; both must be "
            "equal."
        )
