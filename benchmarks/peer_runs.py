"""What is timed of a peer: train steps, evaluations for sampling, and those for the likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import speed
from benchmarks.peer import LEVELS, Peer, Tensor


class Training:
    """Train steps on one batch of random images."""

    def __init__(self, peer: Peer, batch_size: int) -> None:
        torch, optim = peer.torch, peer.config.optim
        self.peer, self.pixels, self.count = peer, peer.images(batch_size), 0
        self.loss = peer.maybe_compile(peer.loss)
        self.weights = list(peer.network.parameters())
        self.ema = [each.detach().clone() for each in self.weights]
        options = {"lr": optim.lr, "betas": (optim.beta1, 0.999), "eps": optim.eps, "fused": True}
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=optim.weight_decay, **options)
        peer.network.train()

    def gradients(self, loss: Callable[..., Any], pixels: Tensor) -> Tensor:
        """Return the loss of images, and store its gradients on the parameters."""
        torch, device, count = self.peer.torch, self.peer.device, len(pixels)
        level = torch.randint(LEVELS, (count,), device=device)
        share = 0.5 if self.peer.config.data.random_flip else 0
        flip = torch.rand((count, 1, 1, 1), device=device) < share
        value = loss(pixels, level, self.peer.normal(count), flip)
        value.backward()
        return value.detach()

    def step(self) -> Tensor:
        """Update the parameters once and return the loss."""
        torch, optim = self.peer.torch, self.peer.config.optim
        loss = self.gradients(self.loss, self.pixels)
        if optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.weights, optim.grad_clip)
        warm_up = min(1.0, self.count / optim.warmup) if optim.warmup else 1.0
        self.optimizer.param_groups[0]["lr"] = optim.lr * warm_up
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.weights, 1 - self.peer.config.model.ema_rate)
        self.count += 1
        return loss

    @property
    def flops(self) -> float:
        """FLOPs of a step, extrapolated from those for one image."""
        found = self.peer.flops(lambda: self.gradients(self.peer.loss, self.pixels[:1]))
        self.optimizer.zero_grad(set_to_none=True)
        return len(self.pixels) * found


class _Evaluations:
    """Repeated evaluations of the network for a batch of random states at one noise level."""

    def __init__(
        self, peer: Peer, batch_size: int, evaluations: int, *, compiled: bool = True
    ) -> None:
        self.peer, self.evaluations = peer, evaluations
        self.x = peer.normal(batch_size)
        self.level = peer.torch.full((batch_size,), LEVELS // 2, device=peer.device)
        self.output = peer.maybe_compile(peer.output) if compiled else peer.output
        peer.network.eval()

    def __call__(self) -> Any:
        """Make the evaluations."""
        raise NotImplementedError


class Sampling(_Evaluations):
    """Evaluations of the network, each followed by an update of the images with new noise."""

    def __call__(self) -> Tensor:
        with self.peer.torch.no_grad():
            x = self.x
            for _ in range(self.evaluations):
                x = x + 1e-3 * self.output(x, self.level) + 1e-3 * self.peer.normal(len(x))
        return x


class Likelihood(_Evaluations):
    """Evaluations of the network with Hutchinson's estimate of its divergence.

    The divergence is computed by backpropagation, as in the official code.
    """

    def __init__(
        self, peer: Peer, batch_size: int, evaluations: int, *, compiled: bool = True
    ) -> None:
        super().__init__(peer, batch_size, evaluations, compiled=compiled)
        self.probe = peer.normal(batch_size).sign()
        peer.network.requires_grad_(False)

    def __call__(self) -> tuple[Tensor, Tensor]:
        x = self.x
        traces = self.peer.torch.zeros(len(x), device=self.peer.device)
        for _ in range(self.evaluations):
            x = x.detach().requires_grad_()
            # PyTorch's FLOP counter does not accept a leaf tensor as input.
            output = self.output(x.clone(), self.level)
            (gradient,) = self.peer.torch.autograd.grad((output * self.probe).sum(), x)
            traces = traces + (gradient * self.probe).flatten(1).sum(1)
            x = x + 1e-3 * output
        return x.detach(), traces.detach()


class TimedPeer:
    """A `speed.Competitor` whose runs are `calls` calls of a peer's function.

    `work` and `flops` are those of a run.
    """

    rivals: Mapping[str, str] = {}

    def __init__(
        self, peer: Peer, call: Callable[[], object], *, calls: int = 1, work: float, flops: float
    ) -> None:
        self.peer, self.call, self.calls, self.work, self.flops = peer, call, calls, work, flops
        self.product = speed.network_product(peer.config)

    def __call__(self) -> None:
        for _ in range(self.calls):
            self.call()
        self.peer.wait()

    @property
    def facts(self) -> speed.Row:
        """Further entries of its row."""
        return {"parameters": self.peer.parameters, "memory": self.peer.memory}


def time_evaluations(
    kind: type[_Evaluations], peer: Peer, batch_size: int, evaluations: int
) -> TimedPeer:
    """Return a competitor that runs `Sampling` or `Likelihood` on a batch.

    FLOPs are extrapolated from one evaluation for one image.
    """
    work = batch_size * evaluations
    flops = work * peer.flops(kind(peer, 1, 1, compiled=False))
    return TimedPeer(peer, kind(peer, batch_size, evaluations), work=work, flops=flops)
