"""The configs of networks of EDM (Karras et al. 2022), from the arguments of their constructors.

An EDM network is a preconditioning around a U-Net. Our counterpart of the first is an SDE with a
parameterization; that of SongUNet is NCSN++ with options, and that of DhariwalUNet is ADM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from configs import networks, recipes
from configs.default import Config, get_default_config
from errors import InputError, printable
from options import choose

_PRECONDITIONING = {"img_resolution": 32, "img_channels": 3, "label_dim": 0}
_PRECONDITIONING |= {"use_fp16": False}
_EDM = {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5, "model_type": "DhariwalUNet"}
_VP = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"}
_VE = {"sigma_min": 0.02, "sigma_max": 100.0, "model_type": "SongUNet"}
_IDDPM = {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"}
PRECONDITIONINGS: dict[str, dict[str, Any]] = {
    "EDMPrecond": _PRECONDITIONING | _EDM,
    "VPPrecond": _PRECONDITIONING | _VP,
    "VEPrecond": _PRECONDITIONING | _VE,
    "iDDPMPrecond": _PRECONDITIONING | _IDDPM,
}
"""The arguments of each preconditioning, in their order, with their default values."""

_UNET = {"augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1, "label_dropout": 0.0}
UNETS: dict[str, dict[str, Any]] = {
    "SongUNet": _UNET
    | {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4}
    | {"attn_resolutions": [16], "embedding_type": "positional", "channel_mult_noise": 1}
    | {"encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1.0, 1.0]},
    "DhariwalUNet": _UNET
    | {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3}
    | {"attn_resolutions": [32, 16, 8]},
}
"""The further arguments of the U-Net named by `model_type`, with their default values."""

ENCODERS = {"standard": "none", "skip": "input_skip", "residual": "residual"}
DECODERS = {"standard": "none", "skip": "output_skip"}
EMBEDDINGS = {"positional": "positional", "fourier": "fourier_linear"}
# VE networks receive the logarithm of the noise scale, which is the label here.
VE_EMBEDDINGS = {"positional": "positional_log", "fourier": "fourier"}


def experiment(
    preconditioning: str, positional: Sequence[Any], keywords: Mapping[str, Any]
) -> Config:
    """Return the config of a network from its constructor's arguments.

    Raises InputError for what our networks cannot represent.
    """
    arguments = _complete(preconditioning, positional, keywords)
    config = get_default_config()
    config.data.image_size = arguments["img_resolution"]
    config.data.num_channels = arguments["img_channels"]
    config.data.num_classes = arguments["label_dim"]
    _precondition(config, preconditioning, arguments)
    model = config.model
    embeddings = VE_EMBEDDINGS if preconditioning == "VEPrecond" else EMBEDDINGS
    if arguments["model_type"] == "SongUNet":
        networks.edm_ddpmpp(model)
        _set_song_unet(model, arguments, embeddings)
    else:
        networks.adm(model)
        model.embedding_type = embeddings["positional"]
    model.nf = arguments["model_channels"]
    model.ch_mult = tuple(arguments["channel_mult"])
    model.num_res_blocks = arguments["num_blocks"]
    model.attn_resolutions = tuple(arguments["attn_resolutions"])
    if arguments["channel_mult_emb"] != 4:
        model.temb_mult = arguments["channel_mult_emb"]
    model.dropout = float(arguments["dropout"])
    if arguments["label_dropout"]:
        model.class_dropout = float(arguments["label_dropout"])
    return config


def _complete(
    preconditioning: str, positional: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all arguments, with default values for those that are not given."""
    defaults = choose(PRECONDITIONINGS, printable(preconditioning), "the class")
    given = dict(zip(defaults, positional)) | dict(keywords)
    unet = printable(given.get("model_type", defaults["model_type"]))
    defaults = defaults | choose(UNETS, unet, "model_type")
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"the argument {printable(name)} is not known.")
        if not _fits(value, defaults[name]):
            raise InputError(
                f"{name} = {printable(value)[:100]} must be of the type of {defaults[name]!r}."
            )
    return defaults | given


def _fits(value: Any, default: Any) -> bool:
    """Return whether a value has the type of an argument's default; integers are real numbers."""
    if isinstance(default, list):
        is_list = isinstance(value, (list, tuple))
        return is_list and all(_fits(each, default[0]) for each in value)
    kinds = (int, float) if isinstance(default, float) else type(default)
    is_huge = isinstance(value, int) and abs(value) >= 2**53
    return (
        isinstance(value, kinds)
        and isinstance(value, bool) == isinstance(default, bool)
        and not is_huge
    )


def _precondition(config: Config, preconditioning: str, arguments: Mapping[str, Any]) -> None:
    """Set the SDE and the parameterization."""
    model = config.model
    if preconditioning == "EDMPrecond":
        recipes.edm(config)
        model.sigma_data = float(arguments["sigma_data"])
    elif preconditioning == "VPPrecond":
        recipes.vp(config)
        model.beta_min = float(arguments["beta_min"])
        model.beta_max = float(arguments["beta_min"] + arguments["beta_d"])
        _require(arguments, M=1000)
    elif preconditioning == "VEPrecond":  # Noise scales of images in [0, 1] instead of [-1, 1].
        model.sigma_min = arguments["sigma_min"] / 2
        model.sigma_max = arguments["sigma_max"] / 2
    else:
        recipes.iddpm(config)
        model.num_scales = arguments["M"]
        _require(arguments, C_1=0.001, C_2=0.008)


def _set_song_unet(model: Config, arguments: Mapping[str, Any], embeddings: dict[str, str]) -> None:
    """Set the options of NCSN++ that correspond to those of a SongUNet."""
    model.embedding_type = choose(embeddings, arguments["embedding_type"], "embedding_type")
    if arguments["channel_mult_noise"] != 1 + ("fourier" in model.embedding_type):
        model.noise_mult = arguments["channel_mult_noise"]
    model.progressive_input = choose(ENCODERS, arguments["encoder_type"], "encoder_type")
    model.progressive = choose(DECODERS, arguments["decoder_type"], "decoder_type")
    taps = tuple(arguments["resample_filter"])
    if taps != taps[::-1] or len(taps) % 2:
        raise InputError(
            f"resample_filter = {list(taps)} is not supported; it must be symmetric and of even "
            "length."
        )
    # Without FIR filter, NCSN++ averages pixels, except in the convolutions of a residual input.
    model.fir = taps != (1, 1) or model.progressive_input == "residual"
    if model.fir:
        model.fir_kernel = taps


def _require(arguments: Mapping[str, Any], **values: float) -> None:
    """Raise InputError unless arguments have the values that our SDE has as constants."""
    for name, value in values.items():
        if arguments[name] != value:
            raise InputError(f"{name} = {arguments[name]} is not supported; it must be {value}.")
