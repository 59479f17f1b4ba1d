"""Checkpoints of the official PyTorch code: its model, moving average, optimizer and step.

PyTorch is imported only when such a file is written. Files are read as data: see `torch_pickles`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax import nnx

from errors import InputError, printable
from pretrained import torch_pickles
from pretrained.parameter_names import torch_layout
from pretrained.stored_parameters import (
    Config,
    Layout,
    Tensors,
    Trained,
    export_params,
    load_params,
    to_number,
    to_step,
)
from readers.files import MAY_LACK, check_regular, check_structure, reading
from sde_lib import VESDE

TorchTensors = dict[str, Any]
"""torch.Tensor by name. The type is not spelled out, as PyTorch need not be installed."""

STATE = {
    "step": object,
    "model": dict,
    "ema": {"shadow_params": list, "decay": object},
    "optimizer": {"state": dict, "param_groups": [{"params": [int]}]},
}
"""The structure of a training state; see `readers.files.mismatch`."""
MOMENT = {"exp_avg": object, "exp_avg_sq": object, "step": object}
MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}  # Fields of Trained: names in the file.
PREFIX = "module."  # The prefix that torch.nn.DataParallel gives to parameter names.


def load(path: str | Path) -> Any:
    """Return the content of a PyTorch file, with tensors as arrays.

    Raises InputError if the file is damaged or contains objects other than tensors and plain Python
    values.
    """
    check_regular(path)
    with reading(path, MAY_LACK, " as a PyTorch checkpoint that contains tensors only"):
        return torch_pickles.load(Path(path))


def to_arrays(source: str, tensors: dict[Any, Any]) -> Tensors:
    """Return a dictionary of tensors. Raise InputError if it contains anything else."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise InputError(f"{source}: {printable(name)} is not a tensor.")
    return {str(name): tensor for name, tensor in tensors.items()}


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a checkpoint of the official PyTorch code. Raise InputError if it does not fit."""
    state, layout = load(path), torch_layout(network)
    check_structure(state, STATE, path, "its training state")
    if not state["optimizer"]["param_groups"]:
        raise InputError(f"{path} is damaged: its optimizer has no 'param_groups'.")
    tensors = to_arrays(f"{path} (its model)", state["model"])
    model = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if "sigmas" in model:
        _check_sigmas(path, model.pop("sigmas"), config)
    params = load_params(layout, model, str(path))
    averages = _read_averages(path, state["ema"], model, layout)
    trained = Trained(
        step=to_step(path, "step", state["step"]),
        params=params,
        ema=load_params(layout, averages, f"{path} (its ema)"),
        ema_rate=to_number(path, "decay", state["ema"]["decay"]),
    )
    return trained._replace(**_read_moments(path, state["optimizer"], list(model), layout))


def _read_averages(path: Path, ema: dict[str, Any], model: Tensors, layout: Layout) -> Tensors:
    """Return the moving averages by name.

    PyTorch lists them without names, in the order of the model and without untrained parameters,
    which are their own averages.
    """
    frozen = {stored.names[0] for stored in layout if not stored.trained}
    names = [name for name in model if name not in frozen]
    shadow = to_arrays(f"{path} (its shadow_params)", dict(enumerate(ema["shadow_params"])))
    averages = list(shadow.values())
    if len(averages) != len(names):
        raise InputError(
            f"{path} has {len(averages)} shadow parameters for {len(names)} trained ones in its "
            f"model."
        )
    return model | dict(zip(names, averages))


def _read_moments(
    path: Path, optimizer: dict[str, Any], names: list[str], layout: Layout
) -> dict[str, Any]:
    """Return the fields mu, nu and updates of `Trained`; none if the optimizer has no state.

    `names` are those of the model's parameters, in the order of the optimizer's.
    """
    numbers = zip(names, optimizer["param_groups"][0]["params"])
    states = {name: optimizer["state"].get(number) for name, number in numbers}
    states = {name: state for name, state in states.items() if state}
    if not states:
        return {}
    for name, moments in states.items():
        check_structure(moments, MOMENT, path, f"the optimizer's state of {printable(name)}")
    zeros = {
        stored.names[0]: np.zeros(stored.file_shape, np.float32)
        for stored in layout
        if not stored.has_gradient
    }
    fields: dict[str, Any] = {}
    for field, kind in MOMENTS.items():
        source = f"{path} (its {kind})"
        moments = to_arrays(source, {name: state[kind] for name, state in states.items()})
        fields[field] = load_params(layout, zeros | moments, source)
    steps = [to_step(path, "the optimizer's step", state["step"]) for state in states.values()]
    return fields | {"updates": max(steps)}


def _check_sigmas(path: Path, sigmas: np.ndarray, config: Config) -> None:
    """Raise InputError if the noise scales of a file are not those of the config."""
    expected = _sigmas(config)
    if sigmas.shape != expected.shape or not np.allclose(sigmas, expected, rtol=1e-4):
        found, wanted = (
            f"{len(scales)} noise scales from {scales[0]:g} to {scales[-1]:g}"
            if scales.ndim == 1 and len(scales)
            else f"noise scales of shape {scales.shape}"
            for scales in (sigmas, expected)
        )
        raise InputError(
            f"{path} does not fit the config: it has {found}; model.num_scales, model.sigma_max "
            f"and model.sigma_min describe {wanted}."
        )


def _sigmas(config: Config) -> np.ndarray:
    """Return the noise scales of the config, which the official networks store, largest first."""
    ve_sde = VESDE(sigma_min=config.model.sigma_min, sigma_max=config.model.sigma_max)
    return ve_sde.sigmas(config.model.num_scales)


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write a checkpoint of the official PyTorch code, which needs PyTorch; `read` inverts it."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "writing a .pth file requires PyTorch, which is not installed: pip install torch "
            "(the CPU version suffices)."
        ) from error
    layout = torch_layout(network)

    def tensors(field: str) -> TorchTensors:
        arrays = export_params(layout, getattr(trained, field))
        return {name: torch.tensor(array) for name, array in arrays.items()}

    averages, model = tensors("ema"), {"sigmas": torch.from_numpy(_sigmas(config))}
    model |= tensors("params")
    # torch.optim.Adam numbers the model's parameters.
    moments = {kind: tensors(field) for field, kind in MOMENTS.items()}
    states = {
        number: {"step": trained.updates}
        | {kind: moments[kind][stored.names[0]] for kind in moments}
        for number, stored in enumerate(layout)
        if stored.has_gradient and trained.updates
    }
    group = {
        "lr": config.optim.lr,
        "betas": (config.optim.beta1, 0.999),
        "eps": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
        "amsgrad": False,
        "params": list(range(len(layout))),
    }
    state = {
        "optimizer": {"state": states, "param_groups": [group]},
        "model": {f"{PREFIX}{name}": tensor for name, tensor in model.items()},
        "ema": {
            "decay": config.model.ema_rate,
            "num_updates": trained.step,
            "shadow_params": [averages[stored.names[0]] for stored in layout if stored.trained],
        },
        "step": trained.step,
    }
    buffer = io.BytesIO()  # PyTorch reports a full disk as an error of its own.
    torch.save(state, buffer)
    file.write(buffer.getbuffer())
