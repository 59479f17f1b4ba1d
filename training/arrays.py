"""Training from Python: a prior of events that are given as an array.

The arguments become a config, so that the training loop, its files and the rules about what may
continue in a workdir are those of `main.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from api.arguments import Numbers, checked, converted, user_code
from api.trained import TrainedModel
from configs import networks
from configs.default import COMPLETED_MODEL_FIELDS, Config, get_default_config
from configs.fields import FIELDS
from datasets import Images
from errors import InputError, choose
from experiment import Experiment
from models import NETWORKS
from models.adapters import network_of
from models.building import Params
from options import COUNT, GIVEN, SHORT, Integer, check, plain
from readers.arrays import Selection
from runs.training_log import FILE_NAME, best_snapshot, read_curves
from sde_lib import SDE, SDES
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
PATIENCE = 5  # of an MLP, which fits a few thousand events better than others within minutes
FIELDS_OF = {
    "batch_size": "training.batch_size",
    "learning_rate": "optim.lr",
    "held_out": "data.held_out",
    "patience": "training.patience",
}
"""The config fields of options; other options are fields of config.model."""
DIGITS = 6  # of mean and std, so that other processors continue a run: sums depend on their order


@functools.partial(checked, data=Numbers(2, 16), steps=COUNT, seed=Integer(0, 2**32 - 1))
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
        (N, H, W, C) are gray levels, as in `main.py`.
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
      options: `batch_size`, `learning_rate`; `held_out`, the share of events for held-out losses;
        `patience`, after how many held-out losses without a new minimum training stops, and returns
        the parameters of the minimum (0 for never, by default 5 for 'mlp' and 0 for others); and
        fields of config.model, such as `nf`, `num_res_blocks`, `dropout` and `ema_rate`.

    Raises InputError for invalid arguments, before training starts, and a workdir of other data or
    another experiment; NotFiniteError if training diverges.
    """
    events = _events(data)
    known = _conditions(condition, events.shape)
    config = _config(events, sde, network, steps, options, known)
    config.seed = seed
    if workdir is None:
        config.training.snapshot_freq_for_preemption = steps
    is_named = network is None or isinstance(network, str)
    experiment = Experiment(config, network=None if is_named else lambda _: network_of(network))
    _check_network(experiment)
    order = np.random.default_rng(seed).permutation(len(events))
    count = min(max(1, round(config.data.held_out * len(events))), len(events) - 1)
    experiment.train, experiment.test = (
        Images(Selection(events, chosen), **{name: each[chosen] for name, each in known.items()})
        for chosen in (order[count:], order[:count])
    )
    if workdir is not None:
        return _train_in(workdir, experiment)
    with tempfile.TemporaryDirectory() as folder:
        return _train_in(folder, experiment)


def _train_in(workdir: str | Path, experiment: Experiment) -> TrainedModel:
    """Train, and return the model of the last step or, with patience, of the best one."""
    settings, state = experiment.config.training, train_job(score_job(experiment), workdir)
    losses = read_curves(Path(workdir) / FILE_NAME)["held_out/loss"]
    best, patience = int(np.argmin(losses.values)), settings.patience
    if int(state.step) < settings.n_iters and not 0 < patience < len(losses.values) - best:
        raise SystemExit(128 + signal.SIGTERM)  # The signal that has stopped training.
    if not patience:
        return experiment.trained_model(state.ema, int(state.step))
    found, ema = experiment.trained(workdir, best_snapshot(workdir, settings.snapshot_freq))
    return experiment.trained_model(ema, found.step)


# --- the config of the arguments ------------------------------------------------------------------


def _config(
    events: np.ndarray,
    sde: str | SDE,
    network: Any,
    steps: int,
    options: dict[str, Any],
    known: dict[str, np.ndarray],
) -> Config:
    """Return the config of a run; see `train`."""
    config, shape = get_default_config(), events.shape[1:]
    _set_data(config, events)
    _set_condition(config, known)
    _set_sde(config, sde)
    model, training = config.model, config.training
    model.update(parameterization="edm", scale_by_sigma=False, dropout=0.0, ema_ramp=True)
    model.class_dropout = 0.0
    if network is None or isinstance(network, str):
        default = networks.mlp if len(shape) != 3 else networks.edm_ddpmpp
        (default if network is None else choose(NAMED, network, "network"))(model)
    else:
        model.name = GIVEN
    if model.name == "mlp":
        training.patience = PATIENCE
    else:
        _set_levels(config, shape)
    interval = -(-steps // EVALUATIONS)
    training.update(n_iters=steps, n_jitted_steps=1, batch_size=256, reduce_mean=True)
    training.update(time_distribution="log_normal", p_mean=math.log(0.6 * model.sigma_data))
    training.update(log_freq=interval, eval_freq=interval, snapshot_sampling=False)
    config.optim.update(lr=1e-3, warmup=100)
    # The spread of 20 steps, the default, is too large by 3 %; small networks can afford more.
    config.sampling.update(method="solver", num_steps=50)
    _set_options(config, options)
    training.snapshot_freq = interval if training.patience else steps
    training.snapshot_freq_for_preemption = interval
    return config


def _events(data: Any) -> np.ndarray:
    """Return data as an array. Raises InputError if there are too few events."""
    events = np.asarray(data)
    if len(events) < 2 or not events.size:
        raise InputError(f"data has the shape {events.shape}; it must have at least two events.")
    return events


def _conditions(condition: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return a condition of a user as fields of `Images`. Raises InputError for another form."""
    if condition is None:
        return {}
    axes = {"classes": (1, 1), "vector": (1, 2), "image": (3, 4)}
    if not isinstance(condition, Mapping):
        condition = {"image" if np.ndim(condition) > 2 else "vector": condition}
    found = {}
    for name, value in condition.items():
        if name not in axes:
            raise InputError(f"condition has {name!r}; it can have {', '.join(axes)}.")
        array = np.asarray(converted(f"condition ({name})", value, Numbers(*axes[name])))
        expected = shape[:3] if name == "image" else shape[:1]
        if array.shape[: len(expected)] != expected:
            raise InputError(
                f"condition ({name}) has the shape {array.shape}; it must begin with {expected}, "
                "as that of data."
            )
        if name == "classes" and (array.dtype.kind not in "iu" or array.min() < 0):
            raise InputError("condition (classes) must be integers from 0.")
        if name != "classes" and array.dtype != np.uint8:
            array = array.astype(np.float32)
        found[name] = array[..., None] if array.ndim in (1, 3) and name != "classes" else array
    return {"labels" if name == "classes" else name: each for name, each in found.items()}


def _set_condition(config: Config, known: dict[str, np.ndarray]) -> None:
    """Describe the condition: its sizes, and the mean and standard deviation of a vector."""
    if "labels" in known:
        config.data.num_classes = int(known["labels"].max()) + 1
    if "image" in known:
        config.data.image_channels = known["image"].shape[-1]
    if "vector" in known:
        config.data.vector_size = known["vector"].shape[-1]
        _set_units(config, "vector_", known["vector"], 0)


def _set_units(config: Config, prefix: str, values: np.ndarray, axes: int | None) -> None:
    """State the mean and the standard deviation of values over axes."""
    mean, std = values.mean(axes, np.float64), values.std(axes, np.float64)
    if not np.all(std > 0):
        where = np.flatnonzero(std <= 0)[:3].tolist()
        what = "condition" if prefix else "data"
        raise InputError(
            f"{what} has entries that are the same in all events, number {where}; remove them."
        )
    for name, each in (("mean", mean), ("std", std)):
        numbers = tuple(float(f"{value:.{DIGITS}g}") for value in np.atleast_1d(each))
        config.data[prefix + name] = numbers


def _set_data(config: Config, events: np.ndarray) -> None:
    """Describe the events: their shape, and their mean and standard deviation."""
    *sides, channels = events.shape[1:]
    config.data.update(dataset=GIVEN, num_channels=channels, random_flip=False, centered=True)
    config.data.image_size = tuple(sides)
    if events.dtype == np.uint8 and len(sides) == 2:
        config.data.uniform_dequantization = True
        return
    config.model.sigma_data = 1.0
    _set_units(config, "", events, None if sides else 0)


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
            raise InputError(
                f"{option} = {SHORT.repr(value)} has no effect on train with the network {name!r}, "
                f"whose options are {', '.join(sorted(known))}."
            )
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
