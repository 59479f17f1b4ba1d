"""The same networks in PyTorch, as diffusers has them: what our speed is compared with.

The peer does what we do, on the same GPU if PyTorch sees one: training with dropout, random flips, the same loss, a
bound on the norm of the gradient, Adam with warm-up, and a moving average; with the fast forms of each that PyTorch
has. Noise levels come from a table of 1,000, so that every SDE serves.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import speed
from configs.default import Config
from errors import InputError
from experiment import Experiment
from pretrained.diffusers_unet import UNET_FAMILIES, unet_config

LEVELS = 1000


def nearest(config: Config) -> Config:
    """The config nearest to this one whose network diffusers has: the same widths, blocks and attention.

    With a FIR filter that is an NCSN++ whose images enter and leave as skips, else DDPM's U-Net. Raises InputError if
    none is near.
    """
    family = "ddpm" if config.model.name == "ncsnpp" and not config.model.fir else config.model.name
    near = config.copy_and_resolve_references()
    with near.unlocked():
        near.model.name = family
        for field, value in UNET_FAMILIES.get(family, ({},))[0].items():
            near.model[field] = value
    unet_config(near)
    return near


def _packages() -> tuple[Any, Any]:
    # PyTorch's threads wait spinning else, which makes a step take up to a hundred times as long when cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise InputError(
            "--peer needs PyTorch and diffusers, which are not here: pip install torch diffusers."
        ) from error
    return torch, diffusers


class Peer:
    """The network and what training needs besides.

    Args:
      config: the experiment; its network is the `nearest`. model.dtype = 'bfloat16' turns autocast on.
      compiled: whether torch.compile comes before.

    Raises InputError without PyTorch or diffusers, and for networks that these have nothing like.
    """

    def __init__(self, config: Config, *, compiled: bool = False) -> None:
        self.torch, diffusers = torch, _ = _packages()
        self.config, near, self.compiled = config, nearest(config), compiled
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        if cuda:  # As JAX does by default.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**unet_config(near))
        for module in network.modules():
            if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
                module.dropout.p = config.model.dropout
        layout = torch.channels_last if cuda else torch.contiguous_format
        self.network = network.to(self.device, memory_format=layout)
        self.layout, self.shape = (
            layout,
            (config.data.num_channels, config.data.image_size, config.data.image_size),
        )
        self.autocast = functools.partial(
            torch.autocast,
            self.device.type,
            torch.bfloat16,
            enabled=speed.rate_of(config) == "bfloat16",
        )
        self.alpha, self.std, self.gain, self.label = (
            torch.tensor(a, device=self.device) for a in _levels(config)
        )

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(each.numel() for each in self.network.parameters())

    def images(self, count: int) -> Any:
        """Random images (B, C, H, W) in bytes."""
        pixels = np.random.default_rng(0).integers(0, 256, (count, *self.shape), dtype=np.uint8)
        return self.torch.tensor(pixels, device=self.device).contiguous(memory_format=self.layout)

    def normal(self, count: int) -> Any:
        """Noise (B, C, H, W)."""
        return self.torch.randn((count, *self.shape), device=self.device).contiguous(
            memory_format=self.layout
        )

    def output(self, x: Any, level: Any) -> Any:
        """The score (B, C, H, W) at noise levels (B,), by number, times factors that are the same for a batch."""
        with self.autocast():
            return self.network(x, self.label[level]).sample.float() * self.gain[level].view(
                -1, 1, 1, 1
            )

    def loss(self, pixels: Any, level: Any, noise: Any, flip: Any) -> Any:
        """Our loss of images in bytes, flipped where `flip` (B, 1, 1, 1) says so; the mean over the batch."""
        x = pixels.float() / 255
        x = self.torch.where(flip, x.flip(-1), x)
        x = 2 * x - 1 if self.config.data.centered else x
        alpha, std = (each[level].view(-1, 1, 1, 1) for each in (self.alpha, self.std))
        residual = self.output(alpha * x + std * noise, level) * std + noise
        squares = residual.square().flatten(1)
        return (
            squares.mean(1) if self.config.training.reduce_mean else 0.5 * squares.sum(1)
        ).mean()

    def prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, under torch.compile if so asked."""
        return self.torch.compile(function) if self.compiled else function

    def wait(self) -> None:
        """Returns when the GPU has done what it was told."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    @property
    def memory(self) -> int | None:
        """The most bytes on the GPU so far; None without one."""
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def flops(self, function: Callable[[], object]) -> float:
        """FLOPs of convolutions and matrix products in a call."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            function()
        return float(counter.get_total_flops())


def _levels(config: Config) -> tuple[np.ndarray, ...]:
    """alpha, std, the score's share of the network's output, and labels, at 1,000 times; float32 (1000,)."""
    experiment = Experiment(config)
    sde, scales = experiment.sde, experiment.num_scales
    t = (
        jnp.linspace(sde.t_min, sde.T, LEVELS)
        if scales is None
        else jnp.arange(LEVELS) % scales / (scales - 1) * sde.T
    )
    model = experiment.model
    gain = model.score_from_output(jnp.ones((LEVELS, 1, 1, 1)), t)[:, 0, 0, 0]
    found = *model.marginal(t), gain, model.label(t)
    return tuple(np.broadcast_to(np.asarray(each, np.float32), (LEVELS,)).copy() for each in found)


class Training:
    """Train steps on one batch of random images."""

    def __init__(self, peer: Peer, batch_size: int) -> None:
        torch, optim = peer.torch, peer.config.optim
        self.peer, self.pixels, self.count = peer, peer.images(batch_size), 0
        self.loss, self.weights = peer.prepared(peer.loss), list(peer.network.parameters())
        self.ema = [each.detach().clone() for each in self.weights]
        options = {"lr": optim.lr, "betas": (optim.beta1, 0.999), "eps": optim.eps, "fused": True}
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=optim.weight_decay, **options)
        peer.network.train()

    def gradients(self, loss: Callable[..., Any], pixels: Any) -> Any:
        """The loss of images and, on the parameters, its gradients."""
        torch, device, count = self.peer.torch, self.peer.device, len(pixels)
        level = torch.randint(LEVELS, (count,), device=device)
        flip = torch.rand((count, 1, 1, 1), device=device) < (
            0.5 if self.peer.config.data.random_flip else 0
        )
        loss = loss(pixels, level, self.peer.normal(count), flip)
        loss.backward()
        return loss.detach()

    def step(self) -> Any:
        """One update; returns the loss."""
        torch, optim = self.peer.torch, self.peer.config.optim
        loss = self.gradients(self.loss, self.pixels)
        if optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.weights, optim.grad_clip)
        self.optimizer.param_groups[0]["lr"] = optim.lr * min(
            1.0, self.count / optim.warmup if optim.warmup else 1.0
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.weights, 1 - self.peer.config.model.ema_rate)
        self.count += 1
        return loss

    @property
    def flops(self) -> float:
        """FLOPs of a step, from one image."""
        found = self.peer.flops(lambda: self.gradients(self.peer.loss, self.pixels[:1]))
        self.optimizer.zero_grad(set_to_none=True)
        return len(self.pixels) * found


class Sampling:
    """Evaluations of the network, each followed by an update of the images with fresh noise."""

    def __init__(
        self, peer: Peer, batch_size: int, evaluations: int, *, compiled: bool = True
    ) -> None:
        self.peer, self.evaluations = peer, evaluations
        self.x, self.level = (
            peer.normal(batch_size),
            peer.torch.full((batch_size,), LEVELS // 2, device=peer.device),
        )
        self.output = peer.prepared(peer.output) if compiled else peer.output
        peer.network.eval()

    def __call__(self) -> Any:
        with self.peer.torch.no_grad():
            x = self.x
            for _ in range(self.evaluations):
                x = x + 1e-3 * self.output(x, self.level) + 1e-3 * self.peer.normal(len(x))
        return x


class Likelihood:
    """Evaluations of the network with Hutchinson's estimate of its divergence, as the official code makes them."""

    def __init__(
        self, peer: Peer, batch_size: int, evaluations: int, *, compiled: bool = True
    ) -> None:
        self.peer, self.evaluations = peer, evaluations
        self.x, self.level = (
            peer.normal(batch_size),
            peer.torch.full((batch_size,), LEVELS // 2, device=peer.device),
        )
        self.probe = peer.normal(batch_size).sign()
        self.output = peer.prepared(peer.output) if compiled else peer.output
        peer.network.eval().requires_grad_(False)

    def __call__(self) -> Any:
        x, traces = self.x, 0.0
        for _ in range(self.evaluations):
            x = x.detach().requires_grad_()
            output = self.output(
                x.clone(), self.level
            )  # PyTorch's counter of FLOPs takes no leaf for an input.
            (gradient,) = self.peer.torch.autograd.grad((output * self.probe).sum(), x)
            traces = traces + (gradient * self.probe).flatten(1).sum(1)
            x = x + 1e-3 * output
        return x.detach(), traces.detach()


class Contestant:
    """A peer's work as `speed.compete` takes it: each run is `times` calls of `call`.

    `work` and `flops` are those of a run.
    """

    rivals: Mapping[str, str] = {}

    def __init__(
        self, peer: Peer, call: Callable[[], object], *, times: int = 1, work: float, flops: float
    ) -> None:
        self.subject, self.call, self.times, self.work, self.flops = peer, call, times, work, flops
        self.rate = speed.rate_of(peer.config)

    def __call__(self) -> None:
        for _ in range(self.times):
            self.call()
        self.subject.wait()

    @property
    def facts(self) -> speed.Row:
        """What its row says besides."""
        return {"parameters": self.subject.parameters, "memory": self.subject.memory}


def repeated(kind: type, peer: Peer, batch_size: int, evaluations: int) -> Contestant:
    """`Sampling` or `Likelihood` of a batch, its FLOPs from one image and evaluation."""
    flops = batch_size * evaluations * peer.flops(kind(peer, 1, 1, compiled=False))
    return Contestant(
        peer, kind(peer, batch_size, evaluations), work=batch_size * evaluations, flops=flops
    )


def title(config: Config, compiled: bool) -> str:
    near = nearest(config)
    changed = any(not _same(config.model.get(field), near.model[field]) for field in near.model)
    like = "nearest" if changed else "same"
    return f"diffusers, {like} network, {speed.rate_of(config)}" + (
        ", compiled" if compiled else ""
    )


def _same(a: Any, b: Any) -> bool:
    return math.isclose(a, b) if isinstance(b, float) and a is not None else a == b
