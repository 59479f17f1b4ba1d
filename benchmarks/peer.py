"""The same work by the networks of diffusers in PyTorch, to which our speed is compared.

Training has dropout, random flips, the same loss, gradient clipping, Adam with warm-up and a moving
average, in the fastest form that PyTorch has for each.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Program
from benchmarks.programs import load_config
from configs.default import Config
from errors import InputError
from experiment import Experiment
from pretrained.diffusers_unet import UNET_FAMILIES, unet_config
from readers.image_sizes import sides

LEVELS = 1000
Tensor = Any  # PyTorch is an optional dependency.


def nearest(config: Config) -> Config:
    """Return the closest config whose network diffusers has, of the same widths and attention.

    Raises InputError if there is no similar network.
    """
    family = "ddpm" if config.model.name == "ncsnpp" and not config.model.fir else config.model.name
    near = config.copy_and_resolve_references()
    with near.unlocked():
        near.model.update({"name": family, **UNET_FAMILIES.get(family, ({},))[0]})
    unet_config(near)
    return near


def title(config: Config, compiled: bool) -> str:
    """Return the name of the peer of a config in tables."""
    near = nearest(config).model
    same = near.to_dict() == config.model.to_dict()
    suffix = ", compiled" if compiled else ""
    return f"diffusers, {'same' if same else 'nearest'} network, {config.model.dtype}{suffix}"


class Peer:
    """The network of `nearest` in diffusers with its loss, under torch.compile if `compiled`.

    model.dtype = 'bfloat16' turns autocast on. Raises InputError without PyTorch or diffusers.
    """

    def __init__(self, config: Config, *, compiled: bool = False) -> None:
        try:
            diffusers: Any = importlib.import_module("diffusers")
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise InputError(
                "--peer needs PyTorch and diffusers, which are not installed: pip install torch "
                "diffusers."
            ) from error
        self.torch, self.config, self.compiled = torch, config, compiled
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        if self.cuda:  # JAX's defaults
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**unet_config(nearest(config)))
        for module in network.modules():
            if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
                module.dropout.p = config.model.dropout
        self.layout = torch.channels_last if self.cuda else torch.contiguous_format
        self.network = network.to(self.device, memory_format=self.layout)
        size = config.data.num_channels, *sides(config.data.image_size)
        self.shape = config.training.batch_size, *size
        enabled = config.model.dtype == "bfloat16"
        self.autocast = functools.partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=enabled
        )
        self.alpha, self.std, self.gain, self.label = (
            torch.tensor(values, device=self.device) for values in _levels(config)
        )
        self.parameters = sum(each.numel() for each in network.parameters())

    def images(self) -> Tensor:
        """Return a batch of random uint8 images (B, C, H, W)."""
        pixels = np.random.default_rng(0).integers(0, 256, self.shape, dtype=np.uint8)
        return self.torch.tensor(pixels, device=self.device).contiguous(memory_format=self.layout)

    def normal(self) -> Tensor:
        """Return a batch of standard normal noise (B, C, H, W)."""
        noise = self.torch.randn(self.shape, device=self.device)
        return noise.contiguous(memory_format=self.layout)

    def output(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the score (B, C, H, W) at noise levels (B,), given by their index."""
        with self.autocast():
            output = self.network(x, self.label[level]).sample.float()
            return output * self.gain[level].view(-1, 1, 1, 1)

    def loss(self, pixels: Tensor, level: Tensor, noise: Tensor, flip: Tensor) -> Tensor:
        """Return our mean training loss of images (B, C, H, W) at noise levels (B,).

        `flip` (B, 1, 1, 1) states which images are flipped.
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
        return self.torch.compile(function) if self.compiled else function

    def program(self, call: Callable[[], object], evaluations: int) -> Program:
        """Return a program that calls a function and waits for the GPU."""

        def run() -> None:
            call()
            if self.cuda:
                self.torch.cuda.synchronize()

        work = evaluations * self.shape[0]
        return Program(run, work, {"parameters": self.parameters})


def _levels(config: Config) -> tuple[np.ndarray, ...]:
    """Return alpha, std, the factor from output to score, and labels, float32 (LEVELS,)."""
    experiment = Experiment(config, jax.devices()[:1])
    sde, scales, model = experiment.sde, experiment.num_scales, experiment.score_model
    t = (
        jnp.linspace(sde.t_min, sde.T, LEVELS)
        if scales is None
        else jnp.arange(LEVELS) % scales / (scales - 1) * sde.T
    )
    gain = model.score_from_output(jnp.ones((LEVELS, 1, 1, 1)), jnp.zeros(()), t)[:, 0, 0, 0]
    found = *model.marginal(t), gain, model.label(t)
    return tuple(np.broadcast_to(np.asarray(each, np.float32), (LEVELS,)).copy() for each in found)


class Training:
    def __init__(self, peer: Peer) -> None:
        torch, optim = peer.torch, peer.config.optim
        self.peer, self.pixels, self.count = peer, peer.images(), 0
        self.loss = peer.maybe_compile(peer.loss)
        self.weights = list(peer.network.parameters())
        self.ema = [each.detach().clone() for each in self.weights]
        options = {"lr": optim.lr, "betas": (optim.beta1, 0.999), "eps": optim.eps, "fused": True}
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=optim.weight_decay, **options)
        peer.network.train()

    def step(self) -> None:
        torch, config, device = self.peer.torch, self.peer.config, self.peer.device
        optim, count = config.optim, len(self.pixels)
        level = torch.randint(LEVELS, (count,), device=device)
        share = 0.5 if config.data.random_flip else 0
        flip = torch.rand((count, 1, 1, 1), device=device) < share
        self.loss(self.pixels, level, self.peer.normal(), flip).backward()
        if optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.weights, optim.grad_clip)
        warm_up = min(1.0, self.count / optim.warmup) if optim.warmup else 1.0
        self.optimizer.param_groups[0]["lr"] = optim.lr * warm_up
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.weights, 1 - config.model.ema_rate)
        self.count += 1


def train_step(config: str, overrides: Sequence[str], compiled: bool = False) -> Program:
    peer = Peer(load_config(config, overrides), compiled=compiled)
    training, steps = Training(peer), 10 if peer.cuda else 1
    return peer.program(lambda: [training.step() for _ in range(steps)], steps)


def forward(config: str, overrides: Sequence[str], compiled: bool = False) -> Program:
    peer = Peer(load_config(config, overrides), compiled=compiled)
    peer.network.eval().requires_grad_(False)
    x, output = peer.normal(), peer.maybe_compile(peer.output)
    level = peer.torch.full((len(x),), LEVELS // 2, device=peer.device)
    return peer.program(lambda: output(x, level), 1)
