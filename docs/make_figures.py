"""Draw the figures of docs/how_it_works.md, with networks of zoo/ and closed-form scores.

Run `python -m docs.make_figures` for all of them, or with some of the names `process`,
`trajectories`, `samplers` and `bits_by_level`. `process` needs Debian's font of emoji
(docs/data.md).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import datasets
import likelihood
import sampling
import score_sde as ss
import solvers
from sde_lib import Score
from tests.mixture import Mixture

FOLDER = Path(__file__).parent / "figures"
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"figure.dpi": 110, "figure.constrained_layout.use": True}
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Colors that color-blind readers can distinguish (Okabe & Ito 2008)."""
MIXTURE = Mixture(jnp.array([[-1.2, -0.6], [1.2, -0.6], [0.0, 1.2]]), jnp.array([0.3, 0.3, 0.3]))


def process(network: str = "emoji_vp", steps: int = 500, columns: int = 9) -> Figure:
    """Held-out images as the forward SDE noises them, and samples on the way from noise to data."""
    model = ss.load(f"zoo/{network}.safetensors")
    chain = model.sde.discretize(steps)
    shown = solvers.frame_indices(np.asarray(model.sde.noise_to_signal(chain.t)), columns)
    times = np.asarray(chain.t)[shown[::-1]]

    held_out = datasets.load(model.config.data, "test")
    indices = np.linspace(0, len(held_out) - 1, 4, dtype=int)[1:3]
    x = model.from_images(held_out.batch(indices).pixels)
    z = jax.random.normal(jax.random.key(0), model.event_shape)
    forward = [model.sde.alpha(t) * x + model.sde.std(t) * z for t in times]

    keys = sampling.image_keys(jax.random.key(0), jnp.array([7, 1]))
    noise = sampling.prior_sample(keys, model.sde, (2, *model.event_shape))
    run = functools.partial(
        sampling.predictor_corrector, keys, model.score, model.sde, steps=chain, shown=shown
    )
    mean, frames, _ = jax.jit(run)(noise)

    figure = Figure((8, 3.9))
    titles = [f"t = {t:.2g}" for t in times]
    for axes, states, names in zip(
        figure.subplots(2), (forward, [*frames[:-1], mean]), (titles, titles[::-1])
    ):
        label = "data to noise" if states is forward else "noise to data"
        rows = np.stack([model.to_images(each) for each in states], 1)
        _show_images(axes, rows, [label, ""], names)
    return figure


def trajectories(steps: int = 600) -> Figure:
    """Solutions of the reverse SDE and of the probability-flow ODE from the same noise, in 2-D."""
    sde, grid = ss.VPSDE(), np.linspace(-3, 3, 200)
    keys = sampling.image_keys(jax.random.key(3), jnp.arange(len(COLORS)))
    noise = sampling.prior_sample(keys, sde, (len(COLORS), 2))
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(MIXTURE.logp(sde, jnp.float32(points), 0.0)).reshape(200, 200)
    first, times = Mixture(MIXTURE.means[:, :1], MIXTURE.stds), np.linspace(1, 0, 100)
    marginal = np.stack([np.exp(first.logp(sde, jnp.float32(grid)[:, None], t)) for t in times], 1)

    chain, shown = sde.steps(sde.sampling_times(steps)), np.arange(3, steps, 4)
    ts = np.append(chain.t, 0.0)[[0, *(shown + 1)]]
    figure = Figure((8, 7))
    upper, lower = figure.subplots(2, 2, sharex="row", sharey="row")
    titles = {False: "reverse SDE, Eq. (6)", True: "probability-flow ODE, Eq. (13)"}
    for above, below, (flow, title) in zip(upper, lower, titles.items()):
        predictor = functools.partial(sampling.reverse_diffusion, probability_flow=flow)
        x, frames, _ = sampling.predictor_corrector(
            keys, MIXTURE.score(sde), sde, noise, chain, predictor=predictor, shown=shown
        )
        above.contourf(grid, grid, density, 8, cmap="Greys", alpha=0.7)
        below.pcolormesh(times, grid, marginal / marginal.max(0), cmap="Greys", alpha=0.7)
        for path, color in zip(np.stack([noise, *frames[:-1], x], 1), COLORS):
            above.plot(*path.T, color=color, linewidth=0.8)
            for marker, end in (("s", path[0]), ("o", path[-1])):
                above.plot(*end, marker, color=color, markersize=7, markeredgecolor="k")
            below.plot(ts, path[:, 0], color=color, linewidth=1)
        above.set(title=title, xlim=(-3, 3), ylim=(-3, 3), xlabel="x[0]", aspect="equal")
        below.set(xlim=(1, 0), ylim=(-3, 3), xlabel="time t")
    upper[0].set_ylabel("x[1]")
    lower[0].set_ylabel("x[0]")
    return figure


PREDICTOR = {"sampler": "pc", "predictor": "reverse_diffusion"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "reverse diffusion": PREDICTOR | {"corrector": "none"},
    "with corrector": PREDICTOR | {"corrector": "langevin_per_image", "snr": 0.1},
    **{name: {"sampler": name} for name in ("ddim", "dpm++_2m", "dpm++_2m_sde")},
}


def samplers(
    network: str = "fashion_vp", evaluations: Sequence[int] = (5, 10, 20, 50, 200), count: int = 4
) -> Figure:
    """Samples from the same noise, by sampler (rows) and evaluations of the network (columns)."""
    model = ss.load(f"zoo/{network}.safetensors")

    def draw(options: dict[str, Any], nfe: int) -> np.ndarray:
        steps = nfe // 2 if options.get("corrector", "none") != "none" else nfe
        try:
            return model.to_images(model.sample(count, seed=1, steps=steps, **options))
        except ss.InputError:  # The sampler is unstable with so few steps.
            return np.full((count, *model.event_shape), 255, np.uint8)

    rows = [np.concatenate([draw(each, n) for n in evaluations]) for each in SAMPLERS.values()]
    figure = Figure((9, 2.3))
    titles = [f"{nfe} evaluations" for nfe in evaluations]
    _show_images(figure.subplots(), np.stack(rows), [*SAMPLERS], titles)
    return figure


def bits_by_level(network: str = "digits_vp", count: int = 359, levels: int = 48) -> Figure:
    """What the noise levels contribute to the bound of bits/dim of held-out images."""
    model = ss.load(f"zoo/{network}.safetensors")
    log_scale, sde = model.scaler.log_scale, model.sde
    held_out = datasets.load(model.config.data, "test")
    x = model.from_images(held_out.batch(np.arange(count)).pixels, seed=0)
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(count))
    bound = jax.jit(functools.partial(likelihood.elbo, model.score, sde))(x, keys)
    total = likelihood.bits_per_dim(-bound.nats, x[0].size, log_scale).mean()
    ends = np.exp(log_scale) / 4, float(sde.noise_to_signal(jnp.float32(sde.T)))
    sigma = np.geomspace(*ends, levels + 1)
    bits = level_bits(model.score, sde, x, jax.random.key(2), sigma)
    gaussian = 0.5 * np.log2(1 + np.var(x, 0).reshape(-1, 1) / sigma**2).mean(0)

    figure = Figure((7, 3.2))
    axes, below = figure.subplots(), sigma[0] ** 2 / sigma[1]
    finer = [total - bits.sum()]  # The bar of the finer levels is as wide as the others.
    axes.stairs(finer, [below, sigma[0]], fill=True, color=COLORS[1], label="all finer levels")
    axes.stairs(bits, sigma, fill=True, color=COLORS[0], label="the network")
    axes.stairs(-np.diff(gaussian), sigma, color="k", label="independent Gaussian pixels")
    axes.set(xscale="log", xlim=(below / 1.2, 20), ylabel="bits/dim")
    axes.set_xlabel("noise level std / alpha, for images in [-1, 1]")
    axes.set_title(f"{total:.3f} bits/dim, {finer[0]:.3f} of them at finer levels")
    axes.legend()
    return figure


def level_bits(score: Score, sde: ss.SDE, x: Array, key: Array, sigma: np.ndarray) -> np.ndarray:
    """Return what the parts between noise levels (n + 1,) add to the bound of images, in bits/dim.

    In nats it is the integral of |std score + z|^2 over log(sigma), where sigma = std / alpha.
    """

    def part(key: Array, start: Array, width: Array) -> Array:
        keys = jax.random.split(key)
        t = sde.time_at(start * jnp.exp(width * jax.random.uniform(keys[0], x.shape[:1])))
        alpha, std = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (sde.alpha, sde.std))
        z = jax.random.normal(keys[1], x.shape)
        return jnp.square(std * score(alpha * x + std * z, t) + z).mean() * width / jnp.log(2)

    keys = jax.random.split(key, len(sigma) - 1)
    parts = (keys, jnp.float32(sigma[:-1]), jnp.float32(np.diff(np.log(sigma))))
    return np.asarray(jax.jit(lambda: jax.lax.map(lambda each: part(*each), parts))())


def _show_images(
    axes: Axes, images: np.ndarray, labels: Sequence[str], titles: Sequence[str]
) -> None:
    """Show images (rows, columns, H, W, C) with labels of rows, and titles of parts of a row."""
    gap = max(1, images.shape[2] // 16)
    images = np.pad(images, [(0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)], constant_values=255)
    rows, columns, height, width, channels = images.shape
    pixels = images.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), interpolation="nearest")
    axes.set_yticks(height * (np.arange(rows) + 0.5), labels)
    axes.set_xticks(columns * width / len(titles) * (np.arange(len(titles)) + 0.5), titles)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


FIGURES: dict[str, Callable[..., Figure]] = {
    each.__name__: each for each in (process, trajectories, samplers, bits_by_level)
}


def draw(name: str, path: Path, **options: Any) -> None:
    with mpl.rc_context(STYLE):
        FIGURES[name](**options).savefig(path)


if __name__ == "__main__":
    for each in sys.argv[1:] or FIGURES:
        draw(each, FOLDER / f"{each}.png")
