"""The networks of diffusers in PyTorch, to which the speed of our networks is compared.

The peer does the same work as our code, on the same GPU if PyTorch supports it: training with
dropout, random flips, the same loss, gradient clipping, Adam with warm-up and a moving average, in
the fastest form that PyTorch has for each. Noise levels come from a table of 1,000, which works for
every SDE.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import speed
from configs.default import Config
from errors import InputError
from experiment import Experiment
from pretrained.diffusers_config import UNET_FAMILIES, unet_config
from readers.image_sizes import sides

LEVELS = 1000
Tensor = Any  # PyTorch is an optional dependency.


def nearest(config: Config) -> Config:
    """Return the config closest to this one whose network diffusers has.

    Widths, blocks and attention are the same. With a FIR filter the network is an NCSN++ whose
    images enter and leave through skip connections, otherwise DDPM's U-Net. Raises InputError if
    there is no similar network.
    """
    family = "ddpm" if config.model.name == "ncsnpp" and not config.model.fir else config.model.name
    near = config.copy_and_resolve_references()
    with near.unlocked():
        near.model.name = family
        for field, value in UNET_FAMILIES.get(family, ({},))[0].items():
            near.model[field] = value
    unet_config(near)
    return near


def title(config: Config, compiled: bool) -> str:
    """Return the name of the peer of a config in tables."""
    near = nearest(config)
    changed = any(not _equal(config.model.get(field), near.model[field]) for field in near.model)
    network = "nearest network" if changed else "same network"
    suffix = ", compiled" if compiled else ""
    return f"diffusers, {network}, {speed.network_product(config)}{suffix}"


def _equal(a: Any, b: Any) -> bool:
    return math.isclose(a, b) if isinstance(b, float) and a is not None else a == b


def _import_packages() -> tuple[Any, Any]:
    # By default PyTorch's threads spin while they wait, which makes a step up to a hundred times
    # slower on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise InputError(
            "--peer needs PyTorch and diffusers, which are not installed: pip install torch "
            "diffusers."
        ) from error
    return torch, diffusers


class Peer:
    """A network of diffusers with its loss.

    Args:
      config: the experiment. The network is that of `nearest`. model.dtype = 'bfloat16' turns
        autocast on.
      compiled: whether to use torch.compile.

    Raises InputError without PyTorch or diffusers, and for networks without a similar one.
    """

    def __init__(self, config: Config, *, compiled: bool = False) -> None:
        torch, diffusers = _import_packages()
        self.torch, self.config, self.compiled = torch, config, compiled
        near = nearest(config)
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        if cuda:  # JAX's defaults
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**unet_config(near))
        for module in network.modules():
            if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
                module.dropout.p = config.model.dropout
        self.layout = torch.channels_last if cuda else torch.contiguous_format
        self.network = network.to(self.device, memory_format=self.layout)
        self.shape = config.data.num_channels, *sides(config.data.image_size)
        self.autocast = functools.partial(
            torch.autocast,
            self.device.type,
            torch.bfloat16,
            enabled=speed.network_product(config) == "bfloat16",
        )
        self.alpha, self.std, self.gain, self.label = (
            torch.tensor(values, device=self.device) for values in _levels(config)
        )

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(each.numel() for each in self.network.parameters())

    def images(self, count: int) -> Tensor:
        """Return random uint8 images (B, C, H, W)."""
        pixels = np.random.default_rng(0).integers(0, 256, (count, *self.shape), dtype=np.uint8)
        return self.torch.tensor(pixels, device=self.device).contiguous(memory_format=self.layout)

    def normal(self, count: int) -> Tensor:
        """Return standard normal noise (B, C, H, W)."""
        noise = self.torch.randn((count, *self.shape), device=self.device)
        return noise.contiguous(memory_format=self.layout)

    def output(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the score (B, C, H, W) at noise levels (B,), given by their index.

        The score may differ by factors that are the same for the whole batch.
        """
        with self.autocast():
            output = self.network(x, self.label[level]).sample.float()
            return output * self.gain[level].view(-1, 1, 1, 1)

    def loss(self, pixels: Tensor, level: Tensor, noise: Tensor, flip: Tensor) -> Tensor:
        """Return our training loss, averaged over the batch.

        `pixels` and `noise` have shape (B, C, H, W), `level` (B,) and `flip` (B, 1, 1, 1), which
        states which images are flipped.
        """
        x = pixels.float() / 255
        x = self.torch.where(flip, x.flip(-1), x)
        x = 2 * x - 1 if self.config.data.centered else x
        alpha, std = (each[level].view(-1, 1, 1, 1) for each in (self.alpha, self.std))
        residual = self.output(alpha * x + std * noise, level) * std + noise
        squares = residual.square().flatten(1)
        if self.config.training.reduce_mean:
            return squares.mean(1).mean()
        return (0.5 * squares.sum(1)).mean()

    def maybe_compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, under torch.compile if `compiled`."""
        return self.torch.compile(function) if self.compiled else function

    def wait(self) -> None:
        """Wait for the GPU to finish."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    @property
    def memory(self) -> int | None:
        """The largest number of bytes on the GPU so far; None without one."""
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def flops(self, function: Callable[[], object]) -> float:
        """Return the FLOPs of convolutions and matrix products in a call."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            function()
        return float(counter.get_total_flops())


def _levels(config: Config) -> tuple[np.ndarray, ...]:
    """Return alpha, std, the factor from output to score, and labels at 1,000 times.

    Each is float32 (1000,).
    """
    experiment = Experiment(config)
    sde, scales = experiment.sde, experiment.num_scales
    t = (
        jnp.linspace(sde.t_min, sde.T, LEVELS)
        if scales is None
        else jnp.arange(LEVELS) % scales / (scales - 1) * sde.T
    )
    model = experiment.model
    gain = model.score_from_output(jnp.ones((LEVELS, 1, 1, 1)), jnp.zeros(()), t)[:, 0, 0, 0]
    found = *model.marginal(t), gain, model.label(t)
    return tuple(np.broadcast_to(np.asarray(each, np.float32), (LEVELS,)).copy() for each in found)
