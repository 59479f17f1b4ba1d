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
from pretrained.stored_parameters import Layout, export_params, load_params
from pretrained.trained import Config, Tensors, Trained, to_rate, to_step
from readers.files import check_regular, check_structure, reading
from sde_lib import VESDE

TorchTensors = dict[str, Any]
"""torch.Tensor by name. The type is not spelled out, as PyTorch need not be installed."""

STATE = {
    "step": object,
    "model": dict,
    "ema": {"shadow_params": list, "decay": object, "frozen_params?": dict},
    "optimizer": {"state": dict, "param_groups": [{"params": [int]}]},
}
"""The structure of a training state; see `readers.files.mismatch`."""
MOMENT = {"exp_avg": object, "exp_avg_sq": object, "step": object}
MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}  # Fields of Trained: names in the file.
PREFIX = "module."  # The prefix that torch.nn.DataParallel gives to parameter names.

# An extra entry in `ema`: averages of parameters that PyTorch does not train, where these
# averages differ from the parameters. The official code ignores the entry.
FROZEN = "frozen_params"


# --- reading ---


def load(path: str | Path) -> Any:
    """Return the content of a PyTorch file, with tensors as arrays.

    Raises InputError if the file is damaged or contains objects other than tensors and plain Python
    values.
    """
    check_regular(path)
    with reading(path, kind=" as a PyTorch checkpoint that contains tensors only"):
        return torch_pickles.load(Path(path))


def to_arrays(source: str, tensors: dict[Any, Any]) -> Tensors:
    """Return a dictionary of tensors. Raise InputError if it contains anything else."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise InputError(f"{source}: {printable(name)} is no tensor.")
    return {str(name): tensor for name, tensor in tensors.items()}


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a checkpoint of the official PyTorch code.

    Raises InputError if the file does not fit `network` or the noise scales of `config`.
    """
    state, layout = load(path), torch_layout(network)
    check_structure(state, STATE, path, "its training state")
    if not state["optimizer"]["param_groups"]:
        raise InputError(f"{path} is damaged: its optimizer has no 'param_groups'.")
    model = {
        name.removeprefix(PREFIX): array
        for name, array in to_arrays(f"{path} (its model)", state["model"]).items()
    }
    if "sigmas" in model:
        _check_sigmas(path, model.pop("sigmas"), config)
    params = load_params(layout, model, str(path))
    averages = _read_averages(path, state["ema"], model, layout)
    trained = Trained(
        step=to_step(path, "step", state["step"]),
        params=params,
        ema=load_params(layout, averages, f"{path} (its ema)"),
        ema_rate=to_rate(path, "decay", state["ema"]["decay"]),
    )
    return trained._replace(**_read_moments(path, state["optimizer"], list(model), layout))


def _read_averages(path: Path, ema: dict[str, Any], model: Tensors, layout: Layout) -> Tensors:
    """Return the moving averages by name.

    PyTorch lists them without names, in the order of the model and without untrained parameters.
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
    extra = to_arrays(f"{path} (its {FROZEN})", ema.get(FROZEN, {}))
    return model | dict(zip(names, averages)) | extra


def _read_moments(
    path: Path, optimizer: dict[str, Any], names: list[str], layout: Layout
) -> dict[str, Any]:
    """Return the fields mu, nu and updates of `Trained`; none if the optimizer has no state.

    `names` are those of the model's parameters, in the order of the optimizer's.
    """
    states = {}
    for name, index in zip(names, optimizer["param_groups"][0]["params"]):
        if optimizer["state"].get(index):
            states[name] = optimizer["state"][index]
    if not states:
        return {}
    for name, moments in states.items():
        check_structure(moments, MOMENT, path, f"the optimizer's state of {printable(name)}")
    zeros = {
        stored.names[0]: np.zeros(stored.file_shapes[0], np.float32)
        for stored in layout
        if not stored.has_gradient
    }
    fields: dict[str, Any] = {}
    for field, kind in MOMENTS.items():
        source = f"{path} (its {kind})"
        moments = to_arrays(source, {name: state[kind] for name, state in states.items()})
        fields[field] = load_params(layout, zeros | moments, source)
    steps = [to_step(path, "the optimizer's step", state["step"]) for state in states.values()]
    fields["updates"] = max(steps)
    return fields


def _check_sigmas(path: Path, sigmas: np.ndarray, config: Config) -> None:
    """Raise InputError if the noise scales of a file are not those of the config."""
    expected = _sigmas(config)
    if sigmas.shape != expected.shape or not np.allclose(sigmas, expected, rtol=1e-4):
        raise InputError(
            f"{path} does not fit the config: it has {_describe(sigmas)}; model.num_scales, "
            f"model.sigma_max and model.sigma_min describe {_describe(expected)}."
        )


def _describe(sigmas: np.ndarray) -> str:
    if sigmas.ndim != 1 or not len(sigmas):
        return f"noise scales of shape {sigmas.shape}"
    return f"{len(sigmas)} noise scales from {sigmas[0]:g} to {sigmas[-1]:g}"


def _sigmas(config: Config) -> np.ndarray:
    """Return the noise scales of the config, which the official networks store, largest first."""
    ve_sde = VESDE(sigma_min=config.model.sigma_min, sigma_max=config.model.sigma_max)
    return ve_sde.sigmas(config.model.num_scales)


# --- writing ---


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write a checkpoint of the official PyTorch code; `read` inverts it.

    Raises InputError if PyTorch is not installed or the official code does not have the network.
    """
    torch = _import_torch()
    layout = torch_layout(network)
    model = {
        "sigmas": torch.from_numpy(_sigmas(config)),
        **_torch_tensors(export_params(layout, trained.params)),
    }
    state = {
        "optimizer": _optimizer_entry(trained, layout, config),
        "model": {f"{PREFIX}{name}": tensor for name, tensor in model.items()},
        "ema": _ema_entry(trained, layout, model, config),
        "step": trained.step,
    }
    buffer = io.BytesIO()  # PyTorch reports a full disk as an error of its own.
    torch.save(state, buffer)
    file.write(buffer.getbuffer())


def _optimizer_entry(trained: Trained, layout: Layout, config: Config) -> dict[str, Any]:
    """Return the state dictionary of torch.optim.Adam, which numbers the model's parameters."""
    moments = {
        kind: _torch_tensors(export_params(layout, getattr(trained, field)))
        for field, kind in MOMENTS.items()
    }
    states = {}
    for index, stored in enumerate(layout):
        if stored.has_gradient and trained.updates:
            states[index] = {"step": trained.updates}
            for kind, tensors in moments.items():
                states[index][kind] = tensors[stored.names[0]]
    group = {
        "lr": config.optim.lr,
        "betas": (config.optim.beta1, 0.999),
        "eps": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
        "amsgrad": False,
        "params": list(range(len(layout))),
    }
    return {"state": states, "param_groups": [group]}


def _ema_entry(
    trained: Trained, layout: Layout, model: TorchTensors, config: Config
) -> dict[str, Any]:
    """Return the state of the official moving average; see `_read_averages` and FROZEN."""
    torch = _import_torch()
    ema = _torch_tensors(export_params(layout, trained.ema))
    trainable = [stored.names[0] for stored in layout if stored.trained]
    frozen = {}
    for name, average in ema.items():
        if name not in trainable and not torch.equal(average, model[name]):
            frozen[name] = average
    entry = {
        "decay": config.model.ema_rate,
        "num_updates": trained.step,
        "shadow_params": [ema[name] for name in trainable],
    }
    if frozen:
        entry[FROZEN] = frozen
    return entry


def _torch_tensors(tensors: Tensors) -> TorchTensors:
    torch = _import_torch()
    return {name: torch.tensor(value) for name, value in tensors.items()}


def _import_torch() -> Any:
    """Return the module torch. Raises InputError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "writing a .pth file requires PyTorch, which is not installed: pip install torch "
            "(the CPU version suffices)."
        ) from error
    return torch
