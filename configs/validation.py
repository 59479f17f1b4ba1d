"""Validation of a config: once, for every mode, before anything is built or written.

Each field must lie in its domain (`fields.py`); the other rules here connect fields. All problems
are reported together, each with the field, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from flax import traverse_util

from configs.default import Config, complete, unknown_field
from configs.fields import FEATURES, FIELDS, INERT
from controllable.tasks import TASKS
from errors import SHORT, InputError
from models import NETWORKS, networks_supporting
from options import listed, outside
from readers.image_sizes import image_shape

MOST_ROUNDS = 10**6  # files of an evaluation
LOGARITHMIC = ("fourier", "positional_log")  # Embeddings of log(label), which is not an index.

Rules = Iterator[tuple[Any, str, str]]
"""Whether a rule is violated, the name of a field, and the end of 'FIELD = VALUE ...'."""


def validated(config: Config, num_devices: int, mode: str = "") -> Config:
    """Return the complete config, locked. Raises InputError with all problems, one a line.

    `num_devices` share each batch. The rules of a `mode`, such as "restore", apply as well.
    """
    config = complete(config)
    problems = list(check_domains(config))
    if not problems:  # Rules that connect fields presuppose that each one is valid.
        rules = [*SECTIONS, *MODES.get(mode, ())]
        found = [each for rule in rules for each in rule(config)]
        batches = ["training", "eval", *(["classifier"] if mode == "train_classifier" else [])]
        found += [each for section in batches for each in _shares(config, section, num_devices)]
        problems = [_sentence(config, *each) for is_wrong, *each in found if is_wrong]
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
            yield outside(name, value, fields[name].domain)


def _sentence(config: Config, name: str, text: str) -> str:
    section, _, key = name.partition(".")
    value = config[section].get(key)
    return f"{name} = {SHORT.repr(tuple(value) if isinstance(value, list) else value)} {text}."


# --- sections -------------------------------------------------------------------------------------


def _data(config: Config) -> Rules:
    data, shape = config.data, image_shape(config.data)
    count, has_range = len(data.std), bool(data.value_range)
    is_wrong = len(data.mean) != count or count not in (0, 1, shape[-1])
    yield is_wrong, "data.std", f"and data.mean must both have one entry, or {shape[-1]}, or none"
    is_wrong = data.std and (has_range or not data.centered)
    yield is_wrong, "data.std", "needs data.centered = True and data.value_range = ()"
    is_wrong = {len(data.vector_mean), len(data.vector_std)} not in ({0}, {data.vector_size})
    yield is_wrong, "data.vector_std", "and vector_mean must have data.vector_size entries, or none"
    text = f"must be False, because events of shape {shape} are not images"
    yield data.random_flip and len(shape) != 3, "data.random_flip", text
    is_wrong = config.training.snapshot_sampling and len(shape) != 3
    yield is_wrong, "training.snapshot_sampling", text
    is_wrong = has_range and not data.value_range[0] < data.value_range[-1]
    yield is_wrong, "data.value_range", "must state the smaller value first"
    text = "must be False with data.value_range: real numbers need no dequantization"
    yield has_range and data.uniform_dequantization, "data.uniform_dequantization", text


def _model(config: Config) -> Rules:
    model, name = config.model, config.model.get("name")
    yield name is None, "model.name", f"must be one of {listed(NETWORKS)}"
    if name is None:
        return
    missing = [each for each in ("num_scales", *NETWORKS[name].required) if each not in model]
    for each in missing:
        yield True, f"model.{each}", f"must be set for model.name = {name!r}"
    if missing:
        return
    for field, used, feature in (
        ("data.num_classes", config.data.num_classes > 0, "class_conditional"),
        ("data.vector_size", config.data.vector_size > 0, "vector_conditional"),
        ("data.image_channels", config.data.image_channels > 0, "image_conditional"),
        ("training.remat", config.training.remat, "remat"),
        ("model.dtype", model.dtype == "bfloat16", "bfloat16"),
        ("data.image_size", len(image_shape(config.data)) != 3, "any_shape"),
    ):
        able = networks_supporting(feature)
        one = "one of " if "," in listed(able) else ""
        text = f"needs {one}model.name = {listed(able)}, not {name!r}"
        yield used and name not in able, field, text
    is_wrong = "fir_kernel" in model and not sum(model.fir_kernel)
    yield is_wrong, "model.fir_kernel", "must have a sum other than 0"
    is_wrong = len(set(model.ema_stds)) < len(model.ema_stds)
    yield is_wrong, "model.ema_stds", "must be different widths"


def time_distribution(training: Config) -> str:
    """Return the distribution of times that config.training names, by its new or older field."""
    return "importance" if training.importance_weighting else training.time_distribution.lower()


def _training(config: Config) -> Rules:
    training, times = config.training, time_distribution(config.training)
    discrete, likelihood = not training.continuous, training.likelihood_weighting
    is_wrong = training.n_iters < training.n_jitted_steps
    yield (
        is_wrong,
        "training.n_iters",
        f"must be at least n_jitted_steps = {training.n_jitted_steps}",
    )
    field = "importance_weighting" if training.importance_weighting else "time_distribution"
    is_wrong = times == "importance" and (discrete or not likelihood)
    text = "needs likelihood_weighting = True and continuous = True"
    yield is_wrong, f"training.{field}", text
    is_wrong = times == "log_normal" and (discrete or likelihood)
    text = "needs likelihood_weighting = False and continuous = True"
    yield is_wrong, "training.time_distribution", text
    text = "needs training.continuous = True"
    yield discrete and likelihood, "training.likelihood_weighting", text
    embedding = config.model.get("embedding_type", "").lower()
    network = NETWORKS.get(config.model.get("name"))
    is_read = network is not None and "embedding_type" in network.fields
    text += "; 'positional' fits discrete times, too"
    yield discrete and is_read and embedding in LOGARITHMIC, "model.embedding_type", text


def _sampling(config: Config) -> Rules:
    sampling = config.sampling
    solver = sampling.solver.lower() if sampling.method.lower() == "solver" else ""
    which = f"sampling.solver = {solver!r}" if solver else "sampling.method = 'ode'"
    text = f"is not possible with {which}: the number of steps differs from image to image"
    is_adaptive = sampling.method.lower() == "ode" or solver == "adaptive_sde"
    yield sampling.trajectory and is_adaptive, "sampling.trajectory", text


def _guidance(config: Config) -> Rules:
    guidance, data = config.guidance, config.data
    field = "data.num_classes" if data.num_classes else "classifier.num_classes"
    count = data.num_classes or config.classifier.num_classes
    is_wrong = any(each >= count for each in guidance.classes)
    yield is_wrong, "guidance.classes", f"must be 0 .. {count - 1}, for {field} = {count}"
    is_wrong = guidance.condition and not (data.vector_size or data.image_channels)
    yield is_wrong, "guidance.condition", "needs data.vector_size or data.image_channels above 0"
    is_wrong = not guidance.interval[0] < guidance.interval[1]
    text = "must be two noise levels (std / alpha), the lower one first"
    yield is_wrong, "guidance.interval", text


def _evaluation(config: Config) -> Rules:
    evaluate = config.eval
    is_wrong = evaluate.begin_ckpt > evaluate.end_ckpt
    yield is_wrong, "eval.begin_ckpt", f"must not exceed eval.end_ckpt = {evaluate.end_ckpt}"
    rounds = -(-evaluate.num_samples // evaluate.batch_size)
    text = f"makes {rounds} files of eval.batch_size = {evaluate.batch_size} images; at most "
    yield rounds > MOST_ROUNDS, "eval.num_samples", f"{text}{MOST_ROUNDS} are possible"
    module, colon, function = evaluate.features.partition(":")
    is_code = colon and all(part.isidentifier() for part in (*module.split("."), function))
    text = f"must be one of {', '.join(FEATURES)}, or package.module:function (not a path)"
    yield evaluate.features not in FEATURES and not is_code, "eval.features", text


SECTIONS = (_data, _model, _training, _sampling, _guidance, _evaluation)


def _shares(config: Config, section: str, num_devices: int) -> Rules:
    """Yield a problem if the devices cannot share a batch evenly."""
    size = config[section].batch_size
    parts = config.training.accumulate if section == "training" else 1
    within = f" in training.accumulate = {parts} parts" if parts > 1 else ""
    text = f"does not divide among {num_devices} devices{within}; use a positive multiple of "
    text += str(parts * num_devices)
    yield size % (parts * num_devices), f"{section}.batch_size", text


# --- modes ----------------------------------------------------------------------------------------


def _restore(config: Config) -> Rules:
    options, data = config.restore, config.data
    is_wrong = options.official and (
        options.method != "projection" or options.task not in ("inpaint", "colorize")
    )
    text = "requires restore.method = 'projection' and restore.task = 'inpaint' or 'colorize'"
    yield is_wrong, "restore.official", text
    is_wrong = options.task == "colorize" and data.num_channels == 1
    text = "needs a model of color images; this one has data.num_channels = 1"
    yield is_wrong, "restore.task", text
    is_wrong = options.observed and not TASKS[options.task].is_image
    text = f"must be False: measurements of restore.task = {options.task!r} are not images"
    yield is_wrong, "restore.observed", text
    is_paired = data.vector_size or data.image_channels
    is_wrong = options.input and is_paired and not config.guidance.condition
    text = "needs guidance.condition, a file with the conditions of the images"
    yield is_wrong, "restore.input", text


def _ema(config: Config) -> Rules:
    text = "has no averages that --mode=ema can combine; train with "
    text += '--config.model.ema_stds="(0.05, 0.1)"'
    yield not config.model.ema_stds, "model.ema_stds", text
    yield not config.ema.std, "ema.std", "must be above 0, such as --config.ema.std=0.1"


MODES = {"restore": (_restore,), "calibrate": (_restore,), "ema": (_ema,)}
