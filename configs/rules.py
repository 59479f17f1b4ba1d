"""Rules that connect fields of a config: one function per section, and one per mode.

Each yields its problems, with the field, its value and what is allowed. They presuppose that each
field lies in its domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_collections

from configs.fields import FEATURES
from controllable.tasks import TASKS
from models import NETWORKS, networks_supporting

Config = ml_collections.ConfigDict


MOST_ROUNDS = 10**6  # files of an evaluation
LOGARITHMIC = ("fourier", "positional_log")  # Embeddings of log(label), which is no index.

Problems = Iterator[str]


# --- sections -------------------------------------------------------------------------------------


def check_data(config: Config) -> Problems:
    """Yield problems of config.data."""
    data = config.data
    if not data.value_range:
        return
    low, high = data.value_range
    if not low < high:
        yield f"data.value_range = {tuple(data.value_range)} must state the smaller value first."
    if data.uniform_dequantization:
        yield (
            f"data.value_range = {tuple(data.value_range)}: real numbers need no dequantization; "
            "set --noconfig.data.uniform_dequantization."
        )


def check_model(config: Config) -> Problems:
    """Yield problems of config.model and of what it is conditioned on."""
    model, name = config.model, config.model.get("name")
    if name is None:
        yield f"model.name is missing; known: {', '.join(sorted(NETWORKS))}."
        return
    missing = [
        f"model.{each}" for each in ("num_scales", *NETWORKS[name].required) if each not in model
    ]
    if missing:
        yield f"{', '.join(missing)} must be set for model.name = {name!r}."
        return
    if config.data.num_classes and name not in networks_supporting("class_conditional"):
        yield (
            f"data.num_classes = {config.data.num_classes}: model.name = {name!r} cannot be "
            f"conditioned on classes; these can: {_supporting('class_conditional')}."
        )
    if "fir_kernel" in model and not sum(model.fir_kernel):
        yield f"model.fir_kernel = {tuple(model.fir_kernel)} must have a sum other than 0."
    if len(set(model.ema_stds)) < len(model.ema_stds):
        yield f"model.ema_stds = {tuple(model.ema_stds)} must be different widths."
    if config.training.remat and name not in networks_supporting("remat"):
        yield (
            f"training.remat = True needs one of model.name = {_supporting('remat')}, not {name!r}."
        )
    if model.dtype == "bfloat16" and name not in networks_supporting("bfloat16"):
        yield (
            f"model.dtype = 'bfloat16' needs one of model.name = {_supporting('bfloat16')}, "
            f"not {name!r}."
        )


def importance_sampling(training: Config) -> str:
    """Return how config.training asks for importance sampling of the times; '' if it does not."""
    if training.importance_weighting:
        return "training.importance_weighting = True"
    if training.time_distribution.lower() == "importance":
        return "training.time_distribution = 'importance'"
    return ""


def check_training(config: Config) -> Problems:
    """Yield problems of config.training."""
    training = config.training
    if training.n_iters < training.n_jitted_steps:
        yield (
            f"training.n_iters = {training.n_iters} must be at least training.n_jitted_steps = "
            f"{training.n_jitted_steps}; raise the first or lower the second."
        )
    importance = importance_sampling(training)
    if importance and not (training.likelihood_weighting and training.continuous):
        yield (
            f"{importance} needs training.likelihood_weighting = True and "
            "training.continuous = True."
        )
    log_normal = training.time_distribution.lower() == "log_normal"
    if log_normal and (training.likelihood_weighting or not training.continuous):
        yield (
            "training.time_distribution = 'log_normal' needs training.likelihood_weighting = False "
            "and training.continuous = True."
        )
    if training.continuous:
        return
    if training.likelihood_weighting:
        yield "training.likelihood_weighting = True needs training.continuous = True."
    embedding = config.model.get("embedding_type", "").lower()
    reads_embedding = "embedding_type" in NETWORKS[config.model.name].fields
    if reads_embedding and embedding in LOGARITHMIC:
        yield (
            f"model.embedding_type = {embedding!r} needs training.continuous = True; 'positional' "
            "fits both."
        )


def check_sampling(config: Config) -> Problems:
    """Yield problems of config.sampling."""
    sampling = config.sampling
    method, solver = sampling.method.lower(), sampling.solver.lower()
    adaptive = method == "ode" or (method == "solver" and solver == "adaptive_sde")
    if sampling.trajectory and adaptive:
        which = "sampling.method = 'ode'" if method == "ode" else f"sampling.solver = {solver!r}"
        yield (
            f"sampling.trajectory = True is not possible with {which}: the number of steps differs "
            "from image to image."
        )


def check_guidance(config: Config) -> Problems:
    """Yield problems of config.guidance."""
    guidance = config.guidance
    field = "data.num_classes" if config.data.num_classes else "classifier.num_classes"
    count = config.data.num_classes or config.classifier.num_classes
    wrong = [each for each in guidance.classes if each >= count]
    if wrong:
        yield (
            f"guidance.classes has {wrong[0]!r}; with {field} = {count} the classes are "
            f"0 .. {count - 1}."
        )
    if not guidance.interval[0] < guidance.interval[1]:
        yield (
            f"guidance.interval = {tuple(guidance.interval)} must be two noise levels "
            "(std / alpha), the lower one first."
        )


def check_evaluation(config: Config) -> Problems:
    """Yield problems of config.eval."""
    evaluate = config.eval
    if evaluate.begin_ckpt > evaluate.end_ckpt:
        yield (
            f"eval.begin_ckpt = {evaluate.begin_ckpt} must not exceed eval.end_ckpt = "
            f"{evaluate.end_ckpt}."
        )
    rounds = -(-evaluate.num_samples // evaluate.batch_size)
    if rounds > MOST_ROUNDS:
        yield (
            f"eval.num_samples = {evaluate.num_samples} makes {rounds} files of eval.batch_size = "
            f"{evaluate.batch_size} images; at most {MOST_ROUNDS} are possible."
        )
    module, colon, function = evaluate.features.partition(":")
    if not colon and module not in FEATURES:
        yield (
            f"eval.features = {evaluate.features!r} is unknown; known: {', '.join(FEATURES)}, "
            "module:function."
        )
    if colon and not all(part.isidentifier() for part in (*module.split("."), function)):
        yield (
            f"eval.features = {evaluate.features!r} must be the name of a module, a colon and the "
            "name of a function in it, as in package.module:function; paths are not possible."
        )


SECTIONS: tuple[Callable[[Config], Problems], ...] = (
    check_data,
    check_model,
    check_training,
    check_sampling,
    check_guidance,
    check_evaluation,
)


def check_batches(config: Config, num_devices: int) -> Problems:
    """Yield a problem for each batch that the devices cannot share evenly."""
    for field in ("training.batch_size", "eval.batch_size"):
        section, key = field.split(".")
        yield from check_shares(config[section][key], num_devices, field)
    parts, size = config.training.accumulate, config.training.batch_size
    if parts > 1 and size % (parts * num_devices):
        yield (
            f"training.batch_size = {size} does not divide into training.accumulate = {parts} "
            f"parts for {num_devices} devices; use a multiple of {parts * num_devices}."
        )


def check_shares(batch_size: int, num_devices: int, field: str) -> Problems:
    """Yield a problem if `batch_size` images cannot be divided among the devices."""
    if batch_size % num_devices:
        yield (
            f"{field} = {batch_size} does not divide among {num_devices} devices; use a positive "
            f"multiple of {num_devices}."
        )


# --- modes ----------------------------------------------------------------------------------------


def check_classifier(config: Config, num_devices: int) -> Problems:
    """Yield problems of --mode=train_classifier."""
    yield from check_shares(config.classifier.batch_size, num_devices, "classifier.batch_size")


def check_restore(config: Config, num_devices: int) -> Problems:
    """Yield problems of --mode=restore."""
    options = config.restore
    has_official_form = options.method == "projection" and options.task in ("inpaint", "colorize")
    if options.official and not has_official_form:
        yield (
            "restore.official = True requires restore.method = 'projection' and restore.task = "
            f"'inpaint' or 'colorize', not {options.method!r} and {options.task!r}."
        )
    if options.task == "colorize" and config.data.num_channels == 1:
        yield (
            "restore.task = 'colorize' needs a model of color images; this one has "
            "data.num_channels = 1."
        )
    if options.observed and not TASKS[options.task].is_image:
        yield (
            f"restore.observed = True: measurements of restore.task = {options.task!r} are not "
            "images. Set restore.observed = False."
        )
    if config.guidance.classes:
        yield (
            f"guidance.classes = {tuple(config.guidance.classes)} cannot be combined with "
            "--mode=restore; set it to ()."
        )


def check_ema(config: Config, num_devices: int) -> Problems:
    """Yield problems of --mode=ema."""
    if not config.model.ema_stds:
        yield (
            "model.ema_stds = (): --mode=ema combines averages that training has stored, and these "
            'checkpoints have none. Train with --config.model.ema_stds="(0.05, 0.1)".'
        )
    if not config.ema.std:
        yield f"ema.std = {config.ema.std} must be above 0, such as --config.ema.std=0.1."


MODES: dict[str, Callable[[Config, int], Problems]] = {
    "train_classifier": check_classifier,
    "restore": check_restore,
    "calibrate": check_restore,
    "ema": check_ema,
}


def _supporting(capability: str) -> str:
    return ", ".join(sorted(networks_supporting(capability)))
