"""Validation of a config: once, for every mode, before anything is built or written.

Each field must lie in its domain (`fields.py`); the other rules here connect fields. All problems
are reported together, each with the field, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from flax import traverse_util

from configs.default import Config, complete, unknown_field
from configs.fields import FEATURES, FIELDS, INERT
from controllable.tasks import TASKS
from errors import InputError
from models import NETWORKS, networks_supporting
from options import SHORT, listed
from readers.image_sizes import image_shape

MOST_ROUNDS = 10**6  # files of an evaluation
LOGARITHMIC = ("fourier", "positional_log")  # Embeddings of log(label), which is not an index.

Problems = Iterator[tuple[str, str]]
"""The name of a field, and what is wrong with its value: the end of 'FIELD = VALUE ...'."""


def validated(config: Config, num_devices: int, mode: str = "") -> Config:
    """Return the complete config, locked.

    Args:
      config: any config; missing fields get their defaults.
      num_devices: devices that share each batch.
      mode: the mode whose own rules apply as well, such as "restore".

    Raises:
      InputError: with all problems, one a line.
    """
    config = complete(config)
    problems = list(check_domains(config))
    if not problems:  # Rules that connect fields presuppose that each one is valid.
        for rule in (*SECTIONS, *MODES.get(mode, ())):
            problems += (_sentence(config, *each) for each in rule(config))
        batches = (*BATCHES, *(["classifier.batch_size"] if mode == "train_classifier" else []))
        for field in batches:
            problems += (_sentence(config, *each) for each in _shares(config, field, num_devices))
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"the config has {len(problems)} problems:\n  " + "\n  ".join(problems))
    return config


def check_domains(config: Config) -> Iterator[str]:
    """Yield a problem for each unknown field and each value outside of its field's domain."""
    fields = dict(FIELDS.items())
    flat = traverse_util.flatten_dict(config.to_dict(), keep_empty_nodes=True, sep=".")
    for name, leaf in cast(dict[str, Any], flat).items():
        value: Any = {} if leaf is traverse_util.empty_node else leaf
        if name in INERT:
            continue
        if name not in fields:
            yield unknown_field(name, value)
        elif not fields[name].domain.allows(value):
            yield f"{name} = {SHORT.repr(value)} must be {fields[name].domain.describe()}."


def _sentence(config: Config, name: str, text: str) -> str:
    section, _, key = name.partition(".")
    value = config[section].get(key)
    return f"{name} = {SHORT.repr(tuple(value) if isinstance(value, list) else value)} {text}."


# --- sections -------------------------------------------------------------------------------------


def _check_data(config: Config) -> Problems:
    shape, count = image_shape(config.data), len(config.data.std)
    if len(config.data.mean) != count or count not in (0, 1, shape[-1]):
        yield "data.std", f"and data.mean must both have one entry, or {shape[-1]}, or none"
    if config.data.std and (config.data.value_range or not config.data.centered):
        yield "data.std", "needs data.centered = True and data.value_range = ()"
    lengths = {len(config.data.vector_mean), len(config.data.vector_std)}
    if lengths not in ({0}, {config.data.vector_size}):
        yield "data.vector_std", "and data.vector_mean must have data.vector_size entries, or none"
    if len(shape) != 3:  # No images.
        for field in ("data.random_flip", "training.snapshot_sampling"):
            section, _, key = field.partition(".")
            if config[section][key]:
                yield field, f"must be False, because events of shape {shape} are not images"
    if not config.data.value_range:
        return
    low, high = config.data.value_range
    if not low < high:
        yield "data.value_range", "must state the smaller value first"
    if config.data.uniform_dequantization:
        yield (
            "data.uniform_dequantization",
            "must be False with data.value_range: real numbers need no dequantization",
        )


def _check_model(config: Config) -> Problems:
    model, name = config.model, config.model.get("name")
    if name is None:
        yield "model.name", f"must be one of {listed(NETWORKS)}"
        return
    missing = [each for each in ("num_scales", *NETWORKS[name].required) if each not in model]
    for each in missing:
        yield f"model.{each}", f"must be set for model.name = {name!r}"
    if missing:
        return
    for field, used, feature in (
        ("data.num_classes", config.data.num_classes > 0, "class_conditional"),
        ("data.vector_size", config.data.vector_size > 0, "vector_conditional"),
        ("data.image_channels", config.data.image_channels > 0, "image_conditional"),
        ("training.remat", config.training.remat, "remat"),
        ("model.dtype", model.dtype == "bfloat16", "bfloat16"),
    ):
        able = networks_supporting(feature)
        if used and name not in able:
            yield field, f"needs one of model.name = {listed(able)}, not {name!r}"
    able = networks_supporting("any_shape")
    if len(image_shape(config.data)) != 3 and name not in able:
        yield "data.image_size", f"needs model.name = {listed(able)}; {name!r} takes images"
    if "fir_kernel" in model and not sum(model.fir_kernel):
        yield "model.fir_kernel", "must have a sum other than 0"
    if len(set(model.ema_stds)) < len(model.ema_stds):
        yield "model.ema_stds", "must be different widths"


def time_distribution(training: Config) -> str:
    """Return the distribution of times that config.training names, by its new or older field."""
    return "importance" if training.importance_weighting else training.time_distribution.lower()


def _check_training(config: Config) -> Problems:
    training, times = config.training, time_distribution(config.training)
    discrete, likelihood = not training.continuous, training.likelihood_weighting
    if training.n_iters < training.n_jitted_steps:
        yield "training.n_iters", f"must be at least n_jitted_steps = {training.n_jitted_steps}"
    if times == "importance" and (discrete or not likelihood):
        field = "importance_weighting" if training.importance_weighting else "time_distribution"
        yield f"training.{field}", "needs likelihood_weighting = True and continuous = True"
    if times == "log_normal" and (discrete or likelihood):
        yield (
            "training.time_distribution",
            "needs likelihood_weighting = False and continuous = True",
        )
    if discrete and likelihood:
        yield "training.likelihood_weighting", "needs training.continuous = True"
    embedding = config.model.get("embedding_type", "").lower()
    network = NETWORKS.get(config.model.get("name"))
    reads_embedding = network is not None and "embedding_type" in network.fields
    if discrete and reads_embedding and embedding in LOGARITHMIC:
        yield (
            "model.embedding_type",
            "needs training.continuous = True; 'positional' fits discrete times, too",
        )


def _check_sampling(config: Config) -> Problems:
    sampling = config.sampling
    solver = sampling.solver.lower() if sampling.method.lower() == "solver" else ""
    if sampling.trajectory and (sampling.method.lower() == "ode" or solver == "adaptive_sde"):
        which = f"sampling.solver = {solver!r}" if solver else "sampling.method = 'ode'"
        yield (
            "sampling.trajectory",
            f"is not possible with {which}: the number of steps differs from image to image",
        )


def _check_guidance(config: Config) -> Problems:
    field = "data.num_classes" if config.data.num_classes else "classifier.num_classes"
    count = config.data.num_classes or config.classifier.num_classes
    if any(each >= count for each in config.guidance.classes):
        yield "guidance.classes", f"must be 0 .. {count - 1}, for {field} = {count}"
    if config.guidance.condition and not (config.data.vector_size or config.data.image_channels):
        yield "guidance.condition", "needs data.vector_size or data.image_channels above 0"
    if not config.guidance.interval[0] < config.guidance.interval[1]:
        yield "guidance.interval", "must be two noise levels (std / alpha), the lower one first"


def _check_evaluation(config: Config) -> Problems:
    evaluate = config.eval
    if evaluate.begin_ckpt > evaluate.end_ckpt:
        yield "eval.begin_ckpt", f"must not exceed eval.end_ckpt = {evaluate.end_ckpt}"
    rounds = -(-evaluate.num_samples // evaluate.batch_size)
    if rounds > MOST_ROUNDS:
        yield (
            "eval.num_samples",
            f"makes {rounds} files of eval.batch_size = {evaluate.batch_size} images; at most "
            f"{MOST_ROUNDS} are possible",
        )
    module, colon, function = evaluate.features.partition(":")
    is_code = colon and all(part.isidentifier() for part in (*module.split("."), function))
    if evaluate.features not in FEATURES and not is_code:
        yield (
            "eval.features",
            f"must be one of {', '.join(FEATURES)}, or package.module:function (not a path)",
        )


SECTIONS: tuple[Callable[[Config], Problems], ...] = (
    _check_data,
    _check_model,
    _check_training,
    _check_sampling,
    _check_guidance,
    _check_evaluation,
)
BATCHES = ("training.batch_size", "eval.batch_size")


def _shares(config: Config, field: str, num_devices: int) -> Problems:
    """Yield a problem if the devices cannot share a batch evenly."""
    section, key = field.split(".")
    parts = config.training.accumulate if section == "training" else 1
    if config[section][key] % num_devices:
        yield (
            field,
            f"does not divide among {num_devices} devices; use a positive multiple of "
            f"{num_devices}",
        )
    elif config[section][key] % (parts * num_devices):
        yield (
            field,
            f"does not divide into training.accumulate = {parts} parts for {num_devices} devices; "
            f"use a multiple of {parts * num_devices}",
        )


# --- modes ----------------------------------------------------------------------------------------


def _check_restore(config: Config) -> Problems:
    options = config.restore
    if options.official and not (
        options.method == "projection" and options.task in ("inpaint", "colorize")
    ):
        yield (
            "restore.official",
            "requires restore.method = 'projection' and restore.task = 'inpaint' or 'colorize', "
            f"not {options.method!r} and {options.task!r}",
        )
    if options.task == "colorize" and config.data.num_channels == 1:
        yield "restore.task", "needs a model of color images; this one has data.num_channels = 1"
    if options.observed and not TASKS[options.task].is_image:
        yield (
            "restore.observed",
            f"must be False: measurements of restore.task = {options.task!r} are not images",
        )
    is_paired = config.data.vector_size or config.data.image_channels
    if options.input and is_paired and not config.guidance.condition:
        yield "restore.input", "needs guidance.condition, a file with the conditions of the images"


def _check_ema(config: Config) -> Problems:
    if not config.model.ema_stds:
        yield (
            "model.ema_stds",
            "has no averages that --mode=ema can combine; train with "
            '--config.model.ema_stds="(0.05, 0.1)"',
        )
    if not config.ema.std:
        yield "ema.std", "must be above 0, such as --config.ema.std=0.1"


MODES: dict[str, tuple[Callable[[Config], Problems], ...]] = {
    "restore": (_check_restore,),
    "calibrate": (_check_restore,),
    "ema": (_check_ema,),
}
