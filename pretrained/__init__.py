"""Reads and writes checkpoints of the official Flax and PyTorch code, diffusers folders, and safetensors.

Nothing here executes what a file says: pickles are read with `weights_only=True`, and PyTorch is asked for only when
such a file is given. What a file lacks, and what it has too much of, is an error that names the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_collections
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx, serialization, traverse_util

from errors import InputError, brief
from models.building import Params
from pretrained.diffusers_unet import read_unet
from pretrained.parameter_names import (
    Place,
    check_unlabelled,
    flax_places,
    give,
    take,
    torch_places,
)
from sde_lib import VESDE

Config = ml_collections.ConfigDict
Tensors = dict[str, np.ndarray]


class Trained(NamedTuple):
    """What a checkpoint holds; parameters are nested dictionaries of float32 arrays, as the network has them.

    Attributes:
      step: training steps done.
      params, ema: parameters and their moving average, with which one samples.
      mu, nu: Adam's averages of gradients and of their squares, or None if the file has none.
      updates: the number of gradients in these.
      ema_rate: decay of the moving average, if the file tells.
    """

    step: int
    params: Params
    ema: Params
    mu: Params | None = None
    nu: Params | None = None
    updates: int = 0
    ema_rate: float | None = None


def read(source: str | Path, network: nnx.Module, config: Config) -> Trained:
    """Reads a file or folder of any known kind; the kind is told from its content.

    Args:
      source: an official Flax or PyTorch checkpoint, a diffusers folder, or a .safetensors file that `write` made.
      network: the network of the config; only the shapes of its parameters count.
      config: the experiment.

    Raises:
      InputError: no such file, a file of another kind, or one that does not fit the config.
    """
    path = Path(source)
    if path.is_dir():
        params = read_unet(path, network, config)
        return Trained(step=0, params=params, ema=params)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"--source={source} cannot be read: {error.strerror}.") from error
    return _reader(path, head)(path, network, config)


def _reader(path: Path, head: bytes) -> Callable[[Path, nnx.Module, Config], Trained]:
    if (
        head[:4] == b"PK\x03\x04" or head[:2] == b"\x80\x02"
    ):  # A zip archive, or the bare pickle of PyTorch before 1.6.
        return read_torch
    if head[8:9] == b"{":
        return read_safetensors
    if head[:1] and (head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF)):  # A map in msgpack.
        return read_flax
    raise InputError(
        f"{path} is no checkpoint of a known kind: it is neither msgpack (Flax) nor a PyTorch or safetensors file, and "
        f"starts with {head!r}."
        + (" It looks like a web page." if head.lstrip()[:1] == b"<" else "")
    )


def writer(target: str | Path) -> Callable[[BinaryIO, Trained, nnx.Module, Config], None]:
    """What writes a file of this name: PyTorch's for .pth, safetensors' for .safetensors, else Flax's."""
    return {".pth": write_torch, ".safetensors": write_safetensors}.get(
        Path(target).suffix, write_flax
    )


# --- Flax -------------------------------------------------------------------------------------------------------------


def load_flax(path: str | Path) -> dict[str, Any]:
    """A msgpack file of Flax as nested dictionaries of arrays. Raises InputError if it is damaged."""
    try:
        return serialization.msgpack_restore(Path(path).read_bytes())
    except Exception as error:  # Damage has no one exception type.
        raise InputError(f"{path} is no complete msgpack file of Flax: {error}") from error


def read_flax(path: Path, network: nnx.Module, config: Config) -> Trained:
    """The msgpack of the official JAX code's State, with its optimizer of flax 0.3."""
    del config
    check_unlabelled(network, "the official Flax code")
    state, places = load_flax(path), flax_places(network)
    _check_keys(
        path, state, {"step", "optimizer", "lr", "model_state", "ema_rate", "params_ema", "rng"}
    )
    if state["model_state"]:
        raise InputError(
            f"{path} has a model_state, {', '.join(state['model_state'])}; no network here has any."
        )
    optimizer = state["optimizer"]
    params = take(places, _flat(optimizer["target"]), str(path))
    ema = take(places, _flat(state["params_ema"]), str(path))
    rest = {"step": int(state["step"]), "ema_rate": float(state["ema_rate"])}
    moments = _flat(optimizer["state"]["param_states"])
    if not moments:
        return Trained(params=params, ema=ema, **rest)
    for key, name in {"mu": "grad_ema", "nu": "grad_sq_ema"}.items():
        tensors = {
            path.removesuffix(f"/{name}"): value
            for path, value in moments.items()
            if path.endswith(f"/{name}")
        }
        rest[key] = take(places, tensors, f"{path} (its {name})")
    return Trained(params=params, ema=ema, updates=int(optimizer["state"]["step"]), **rest)


def write_flax(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Inverts `read_flax`; the official code restores it with the flax that it asks for, 0.3.1."""
    check_unlabelled(network, "the official Flax code")
    places = flax_places(network)
    tree = lambda params: traverse_util.unflatten_dict(give(places, params), sep="/")
    moments = {"grad_ema": give(places, trained.mu), "grad_sq_ema": give(places, trained.nu)}
    states = {
        f"{name}/{kind}": value
        for kind, tensors in moments.items()
        for name, value in tensors.items()
    }
    state = {
        "step": np.array(trained.step, np.int32),
        "optimizer": {
            "target": tree(trained.params),
            "state": {
                "step": np.array(trained.updates, np.int32),
                "param_states": traverse_util.unflatten_dict(states, sep="/"),
            },
        },
        "lr": np.array(config.optim.lr, np.float32),
        "model_state": {},
        "ema_rate": np.array(config.model.ema_rate, np.float32),
        "params_ema": tree(trained.ema),
        "rng": np.array([0, config.seed], np.uint32),
    }
    file.write(serialization.msgpack_serialize(state))


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def load_torch(path: str | Path) -> Any:
    """What a file of PyTorch holds. Raises InputError without PyTorch, and for what is no file of tensors alone."""
    torch = _torch(f"reading {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damage has no one exception type.
        raise InputError(
            f"{path} is no PyTorch checkpoint of tensors alone: {brief(error)}"
        ) from error


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor of PyTorch as an array; floating-point numbers as float32."""
    return tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()


def read_torch(path: Path, network: nnx.Module, config: Config) -> Trained:
    """The dictionary that the official PyTorch code saves: model, ema, optimizer and step."""
    state, places = load_torch(path), torch_places(network)
    _check_keys(path, state, {"model", "ema", "optimizer", "step"})
    model = {
        name.removeprefix("module."): to_numpy(tensor) for name, tensor in state["model"].items()
    }
    if "sigmas" in model:
        _check_sigmas(path, model.pop("sigmas"), config)
    params = take(places, model, str(path))
    ema = take(places, _shadow(path, state["ema"], model, places), f"{path} (its ema)")
    trained = Trained(int(state["step"]), params, ema, ema_rate=float(state["ema"]["decay"]))
    of_each = {}
    optimizer = state["optimizer"]
    for name, i in zip(model, optimizer["param_groups"][0]["params"]):
        if optimizer["state"].get(i):
            of_each[name] = optimizer["state"][i]
    if not of_each:
        return trained
    moments = {}
    for key, theirs in MOMENTS.items():
        still = {
            place.names[0]: np.zeros(place.shapes[0], np.float32)
            for place in places
            if not place.moves
        }
        tensors = still | {name: to_numpy(each[theirs]) for name, each in of_each.items()}
        moments[key] = take(places, tensors, f"{path} (its {theirs})")
    return trained._replace(**moments, updates=max(int(each["step"]) for each in of_each.values()))


def _shadow(path: Path, ema: dict[str, Any], model: Tensors, places: list[Place]) -> Tensors:
    """The moving averages by name; PyTorch lists them in the order of the model, without what it does not train."""
    frozen = {place.names[0] for place in places if not place.trained}
    names = [name for name in model if name not in frozen]
    if len(ema["shadow_params"]) != len(names):
        raise InputError(
            f"{path} has {len(ema['shadow_params'])} shadow parameters for {len(names)} trained ones of its model."
        )
    extra = {name: to_numpy(tensor) for name, tensor in ema.get(FROZEN, {}).items()}
    return model | dict(zip(names, map(to_numpy, ema["shadow_params"]))) | extra


MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}
FROZEN = (
    "frozen_params"  # Ours: averages of what PyTorch does not train; its code overlooks this entry.
)


def write_torch(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Inverts `read_torch`; the official code restores it."""
    torch, places = _torch("writing a .pth file"), torch_places(network)
    tensors = lambda params: {
        name: torch.tensor(value) for name, value in give(places, params).items()
    }
    model, ema, optim = tensors(trained.params), tensors(trained.ema), config.optim
    trainable = [place.names[0] for place in places if place.trained]
    moving = {place.names[0] for place in places if place.moves}
    moments = {theirs: tensors(getattr(trained, key)) for key, theirs in MOMENTS.items()}
    states = {
        i: {"step": trained.updates} | {theirs: each[name] for theirs, each in moments.items()}
        for i, name in enumerate(model)
        if name in moving
    }
    group = {
        "lr": optim.lr,
        "betas": (optim.beta1, 0.999),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    group |= {"amsgrad": False, "params": list(range(len(model)))}
    frozen = {
        name: ema[name]
        for name in ema
        if name not in trainable and not torch.equal(ema[name], model[name])
    }
    average = {"decay": config.model.ema_rate, "num_updates": trained.step}
    average |= {"shadow_params": [ema[name] for name in trainable]} | (
        {FROZEN: frozen} if frozen else {}
    )
    sigmas = {"sigmas": torch.from_numpy(_sigmas(config))}
    state = {
        "optimizer": {"state": states if trained.updates else {}, "param_groups": [group]},
        "model": {f"module.{name}": tensor for name, tensor in (sigmas | model).items()},
        "ema": average,
        "step": trained.step,
    }
    torch.save(state, file)


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{purpose} needs PyTorch, which is not here: pip install torch (for the CPU is fine)."
        ) from error
    return torch


def _sigmas(config: Config) -> np.ndarray:
    ladder = VESDE(sigma_min=config.model.sigma_min, sigma_max=config.model.sigma_max)
    return ladder.sigmas(config.model.num_scales)


def _check_sigmas(path: Path, theirs: np.ndarray, config: Config) -> None:
    """Raises InputError if the noise scales in a file are not those of the config."""
    ours = _sigmas(config)
    describe = lambda sigmas: f"{len(sigmas)} noise scales from {sigmas[0]:g} to {sigmas[-1]:g}"
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-4):
        raise InputError(
            f"{path} does not fit the config: it has {describe(theirs)}; model.num_scales, model.sigma_max and "
            f"model.sigma_min ask for {describe(ours)}."
        )


# --- safetensors ------------------------------------------------------------------------------------------------------

TREES = ("params", "ema", "mu", "nu")


def load_safetensors(path: str | Path) -> tuple[dict[str, str], Tensors]:
    """The notes and the arrays of a safetensors file. Raises InputError if it is damaged."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no complete safetensors file: {error}") from error


def read_safetensors(path: Path, network: nnx.Module, config: Config) -> Trained:
    """A file of `write_safetensors`: 'params/', 'ema/', 'mu/' and 'nu/' before official Flax names."""
    del config
    notes, tensors = load_safetensors(path)
    strays = [name for name in tensors if name.partition("/")[0] not in TREES]
    if "step" not in notes or strays:
        raise InputError(
            f"{path} was not written by --mode=export"
            + (f" (it holds {strays[0]})" if strays else "")
            + "; a model "
            "of diffusers is imported by the folder that holds its config.json."
        )
    places = flax_places(network)
    trees = {}
    for tree in TREES:
        found = {
            name.removeprefix(f"{tree}/"): tensors[name]
            for name in tensors
            if name.startswith(f"{tree}/")
        }
        trees[tree] = take(places, found, f"{path} (its {tree})")
    return Trained(step=int(notes["step"]), updates=int(notes["updates"]), **trees)


def write_safetensors(
    file: BinaryIO, trained: Trained, network: nnx.Module, config: Config
) -> None:
    """Inverts `read_safetensors`."""
    places = flax_places(network)
    tensors = {
        f"{tree}/{name}": value
        for tree in TREES
        for name, value in give(places, getattr(trained, tree)).items()
    }
    notes = {
        "step": str(trained.step),
        "updates": str(trained.updates),
        "config": json.dumps(config.to_dict()),
    }
    file.write(safetensors.numpy.save(tensors, notes))


# --- what the formats share -------------------------------------------------------------------------------------------


def _flat(tree: dict[str, Any]) -> Tensors:
    return traverse_util.flatten_dict(tree, sep="/")


def _check_keys(path: Path, state: Any, expected: set[str]) -> None:
    """Raises InputError if a checkpoint does not have exactly these entries."""
    present = set(state) if isinstance(state, dict) else set()
    for key in sorted(expected - present):
        raise InputError(f"{path} is no training state of the official code: it has no {key!r}.")
    for key in sorted(map(str, present - expected)):
        raise InputError(
            f"{path} has an entry {key!r} that a training state of the official code does not have."
        )
