"""Draw the figures of docs/how_it_works.md, with networks of zoo/ and closed-form scores.

Run `python -m docs.make_figures` for all of them, or with some of the names `process`,
`trajectories`, `samplers` and `bits_by_level`. `process` needs Debian's font of emoji
(docs/data.md).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

import sampling
import score_sde as ss
import solvers
from docs.bits_by_level import contributions
from tests.mixture import Mixture

FOLDER = Path(__file__).parent / "figures"
ZOO = Path(__file__).parents[1] / "zoo"
DPI = 110
STYLE: dict[RcKeyType, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
"""Colours that colour-blind readers can distinguish (Okabe & Ito 2008)."""
PATHS = (BLUE, ORANGE, GREEN, PURPLE)
DENSITY = "Greys"  # The colour map of densities.

MIXTURE = Mixture(jnp.array([[-1.2, -0.6], [1.2, -0.6], [0.0, 1.2]]), jnp.array([0.3, 0.3, 0.3]))


# --- forward and reverse process ------------------------------------------------------------------


def process(network: str = "emoji_vp", steps: int = 500, columns: int = 9) -> Figure:
    """Held-out images as the forward SDE noises them, and samples on the way from noise to data."""
    model = ss.load(ZOO / f"{network}.safetensors")
    chain = model.sde.discretize(steps)
    levels = np.asarray(model.sde.noise_to_signal(jnp.asarray(chain.t)))
    shown = solvers.frame_indices(levels, columns)

    held_out = model.experiment.test
    pixels = held_out.batch(np.linspace(0, len(held_out) - 1, 4, dtype=int)[1:3]).pixels
    x, z = model.from_images(pixels), jax.random.normal(jax.random.key(0), model.event_shape)
    times = np.asarray(chain.t)[shown[::-1]]
    forward = [model.sde.alpha(t) * x + model.sde.std(t) * z for t in times]

    keys = sampling.image_keys(jax.random.key(0), jnp.array([7, 1]))
    noise = sampling.prior_sample(keys, model.sde, (2, *model.event_shape))
    run = functools.partial(
        sampling.predictor_corrector, keys, model.score, model.sde, steps=chain, shown=shown
    )
    mean, frames, _ = jax.jit(run)(noise)
    reverse = [*frames[:-1], mean]

    rows = [[each[i] for each in states] for states in (forward, reverse) for i in range(2)]
    labels = ("data to noise", "", "noise to data", "")
    titles = [*(f"t = {t:.2g}" for t in times)]
    images = [[model.to_images(each) for each in row] for row in rows]
    figure, axes = _rows_of_images(images, labels, width=8, gap=0.28)
    _column_titles(axes[0], titles)
    _column_titles(axes[2], titles[::-1])
    return figure


# --- trajectories ---------------------------------------------------------------------------------


def trajectories(steps: int = 600) -> Figure:
    """Solutions of the reverse SDE and of the probability-flow ODE from the same noise, in 2-D."""
    sde, plane = ss.VPSDE(), (-3, 3)
    keys = sampling.image_keys(jax.random.key(3), jnp.arange(len(PATHS)))
    noise = sampling.prior_sample(keys, sde, (len(PATHS), 2))
    grid = np.linspace(*plane, 200)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(MIXTURE.logp(sde, jnp.float32(points), 0.0)).reshape(200, 200)
    times, marginal = _marginal(sde, grid)

    with rc_context(STYLE):
        figure = Figure((8, 7), DPI, layout="constrained")
        upper, lower = figure.subplots(2, 2, sharex="row", sharey="row")
        titles = {False: "reverse SDE, Eq. (6)", True: "probability-flow ODE, Eq. (13)"}
        for column, (flow, title) in enumerate(titles.items()):
            ts, states = _paths(sde, keys, noise, steps, probability_flow=flow)
            upper[column].contourf(grid, grid, density, 8, cmap=DENSITY, alpha=0.7)
            lower[column].pcolormesh(times, grid, marginal, cmap=DENSITY, alpha=0.7)
            for path, color in zip(states.swapaxes(0, 1), PATHS):
                upper[column].plot(*path.T, color=color, linewidth=0.8)
                upper[column].plot(*path[0], "s", color=color, markersize=7, markeredgecolor="k")
                upper[column].plot(*path[-1], "o", color=color, markersize=7, markeredgecolor="k")
                lower[column].plot(ts, path[:, 0], color=color, linewidth=1)
            upper[column].set(title=title, xlim=plane, ylim=plane, xlabel="x[0]", aspect="equal")
            lower[column].set(xlim=(1, 0), ylim=plane, xlabel="time t")
        upper[0].set_ylabel("x[1]")
        lower[0].set_ylabel("x[0]")
    return figure


def _paths(
    sde: ss.SDE, keys: Array, noise: Array, steps: int, *, probability_flow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return times (n,) from T to 0 and states (n, B, 2): the first, every fourth, and the last."""
    chain, shown = sde.steps(sde.sampling_times(steps)), np.arange(3, steps, 4)
    x, frames, _ = sampling.predictor_corrector(
        *(keys, MIXTURE.score(sde), sde, noise, chain),
        predictor=functools.partial(sampling.reverse_diffusion, probability_flow=probability_flow),
        shown=shown,
    )
    times = np.append(chain.t, 0.0)
    return times[[0, *(shown + 1)]], np.stack([noise, *frames[:-1], x])


def _marginal(sde: ss.SDE, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times (100,), and the density of x[0] at them, relative to its maximum (n, 100)."""
    times = np.linspace(1, 0, 100)
    first = Mixture(MIXTURE.means[:, :1], MIXTURE.stds)
    x = jnp.float32(grid)[:, None]
    density = np.stack([np.exp(first.logp(sde, x, t)) for t in times], 1)
    return times, density / density.max(0)


# --- samples by sampler and number of evaluations -------------------------------------------------

SAMPLERS: dict[str, dict[str, Any]] = {
    "reverse diffusion": {"sampler": "pc", "predictor": "reverse_diffusion", "corrector": "none"},
    "with corrector": {
        "sampler": "pc",
        "predictor": "reverse_diffusion",
        "corrector": "langevin_per_image",
        "snr": 0.1,
    },
    "ddim": {"sampler": "ddim"},
    "dpm++_2m": {"sampler": "dpm++_2m"},
    "dpm++_2m_sde": {"sampler": "dpm++_2m_sde"},
}


def samplers(
    network: str = "fashion_vp", evaluations: Sequence[int] = (5, 10, 20, 50, 200), count: int = 4
) -> Figure:
    """Samples from the same noise, by sampler (rows) and evaluations of the network (columns)."""
    model = ss.load(ZOO / f"{network}.safetensors")
    network_score = jax.jit(model.score)

    def score(x: Array, t: Array) -> Array:
        with jax.disable_jit(False):  # Only the network is compiled, and once.
            return network_score(x, t)

    model.score = score
    blank = np.full((count, *model.event_shape), 255, np.uint8)

    def draw(options: dict[str, Any], nfe: int) -> np.ndarray:
        steps = nfe // 2 if options.get("corrector", "none") != "none" else nfe
        try:
            return model.to_images(model.sample(count, seed=1, steps=steps, **options))
        except ss.InputError:  # The sampler is unstable with so few steps.
            return blank

    with jax.disable_jit():  # Compiled, each sampler would compile the network again.
        images = [
            [image for nfe in evaluations for image in draw(options, nfe)]
            for options in SAMPLERS.values()
        ]
    figure, axes = _rows_of_images(images, [*SAMPLERS], width=9, group=count)
    _column_titles(axes[0], [f"{nfe} evaluations" for nfe in evaluations])
    return figure


# --- bits/dim by noise level ----------------------------------------------------------------------


def bits_by_level(network: str = "digits_vp", count: int = 359, levels: int = 48) -> Figure:
    """What the noise levels contribute to the bound of bits/dim of held-out images."""
    found = contributions(ss.load(ZOO / f"{network}.safetensors"), count, levels)
    sigma = found.sigma
    below = sigma[0] ** 2 / sigma[1]  # The bar of the finer levels is as wide as the others.
    with rc_context(STYLE):
        figure = Figure((7, 3.2), DPI, layout="constrained")
        axes = figure.subplots()
        axes.stairs(
            [found.detail], [below, sigma[0]], fill=True, color=ORANGE, label="all finer levels"
        )
        axes.stairs(found.network, sigma, fill=True, color=BLUE, label="the network")
        axes.stairs(found.independent, sigma, color="k", label="independent Gaussian pixels")
        axes.set(xscale="log", xlim=(below / 1.2, 20), ylabel="bits/dim")
        axes.set_xlabel("noise level std / alpha, for images in [-1, 1]")
        axes.set_title(f"{found.total:.3f} bits/dim, {found.detail:.3f} of them at finer levels")
        axes.legend()
    return figure


# --- rows of images -------------------------------------------------------------------------------


def _rows_of_images(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    *,
    width: float,
    group: int = 1,
    gap: float = 0.12,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of images (H, W, C) in labelled rows.

    `group` columns belong together, and `gap` is the space between rows, relative to their height.
    """
    strips = [_strip(row, group) for row in rows]
    height, length = strips[0].shape[:2]
    left, top = 1.3, 0.3  # inches
    row_height = (width - left) * height / length
    total = top + (1 + gap) * row_height * len(rows)
    with rc_context(STYLE):
        figure = Figure((width, total), DPI)
        axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        figure.subplots_adjust(left / width, 0.01, 0.995, 1 - top / total, hspace=gap)
        for panel, strip, label in zip(axes, strips, labels):
            panel.imshow(strip, interpolation="nearest")
            panel.axis("off")
            panel.text(-0.01, 0.5, label, transform=panel.transAxes, ha="right", va="center")
    return figure, list(axes)


def _strip(images: Sequence[np.ndarray], group: int) -> np.ndarray:
    """Join images (H, W, C) side by side: (H, N, 3), with wider gaps between groups."""
    side = images[0].shape[0]
    parts = []
    for i, image in enumerate(images):
        gap = 0 if i == 0 else max(1, side // (4 if group > 1 and i % group == 0 else 16))
        parts += [np.full((side, gap, 3), 255, np.uint8), np.broadcast_to(image, (side, side, 3))]
    return np.concatenate(parts, 1)


def _column_titles(panel: Axes, titles: Sequence[str]) -> None:
    """Write titles above equal parts of the images of a row."""
    for i, title in enumerate(titles):
        position = (i + 0.5) / len(titles)
        panel.text(position, 1.05, title, transform=panel.transAxes, ha="center", va="bottom")


FIGURES: dict[str, Callable[..., Figure]] = {
    each.__name__: each for each in (process, trajectories, samplers, bits_by_level)
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], help="by default all")
    for name in parser.parse_args().names or FIGURES:
        FOLDER.mkdir(exist_ok=True)
        FIGURES[name]().savefig(FOLDER / f"{name}.png")
