"""The figures of docs/how_it_works.md: a closed form that one shows, and the script."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import likelihood
from docs import bits_by_level, make_figures
from sde_lib import VESDE, VPSDE
from tests import gaussian

STD = np.linspace(0.1, 1, 12).reshape(2, 2, 3)  # Of Gaussian data, in each of 12 dimensions.
COUNT, LEVELS = 2000, 8
TINY = {  # Arguments with which each figure is drawn in seconds.
    "process": {"network": "digits_vp", "steps": 30},
    "trajectories": {"steps": 40},
    "samplers": {"network": "digits_vp", "evaluations": (4, 30), "count": 2},
    "bits_by_level": {"count": 8, "levels": 16},
}


def test_the_page_shows_all_figures():
    """Each with a text for readers who do not see it, and the command that draws it."""
    page = (make_figures.FOLDER.parent / "how_it_works.md").read_text()
    for name in make_figures.FIGURES:
        assert re.search(rf"!\[[^\]]{{40,}}\]\(figures/{name}\.png\)", page), name
        assert f"`python -m docs.make_figures {name}`" in page
    files = [*make_figures.FOLDER.iterdir()]
    assert {path.stem for path in files} == set(make_figures.FIGURES) == set(TINY)
    assert sum(path.stat().st_size for path in files) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_script(name, tmp_path):
    path = tmp_path / f"{name}.png"
    make_figures.FIGURES[name](**TINY[name]).savefig(path)
    with Image.open(path) as drawn, Image.open(make_figures.FOLDER / path.name) as committed:
        assert drawn.width == committed.width
        assert len(drawn.convert("L").getcolors()) > 20


@pytest.mark.slow
def test_the_trajectories_are_current(tmp_path):
    """The committed picture is what the script draws, up to the rendering of other versions."""
    path = tmp_path / "trajectories.png"
    make_figures.trajectories().savefig(path)
    drawn, committed = (
        np.asarray(Image.open(each).convert("L"), float)
        for each in (path, make_figures.FOLDER / path.name)
    )
    assert np.abs(drawn - committed).mean() < 2


@pytest.mark.parametrize(
    "sde",
    [VPSDE(t_min=0.05), pytest.param(VESDE(t_min=1e-3), marks=pytest.mark.slow)],
    ids=["vp", "ve"],
)
def test_terms_of_the_bound(sde):
    """Their sum is the bound; each is a difference of informations I(x; x_i) of Gaussian data."""
    keys = jax.random.split(jax.random.key(0), COUNT)
    alpha, var = (np.asarray(f(jnp.array([sde.t_min, sde.T])), float) for f in (sde.alpha, sde.var))
    std = np.sqrt(STD**2 + var[0] / alpha[0] ** 2)  # Of y = x / alpha at t_min.
    x = jnp.float32(alpha[0] * std * jax.random.normal(jax.random.key(1), (COUNT, *STD.shape)))
    score = gaussian.score(sde, 0.0, STD)
    compute = functools.partial(bits_by_level.bound_terms, score, sde, levels=LEVELS)
    sigma, detail, levels, prior = jax.jit(compute)(x, keys)
    bound = jax.jit(functools.partial(likelihood.elbo, score, sde, pairs=LEVELS))(x, keys)
    total = detail + levels.sum(0) + prior
    np.testing.assert_allclose(total, bound.nats, rtol=1e-4, atol=1e-3)

    added = np.asarray(sigma, float)[1:] ** 2 - float(sigma[0]) ** 2
    information = 0.5 * np.log1p(std**2 / added.reshape(-1, 1, 1, 1)).sum((1, 2, 3))
    entropy = 0.5 * np.log(2 * np.pi * np.e * (alpha[0] * std) ** 2).sum()
    marginal = (std**2 + added[-1]) * alpha[1] ** 2 / sde.prior_std**2
    divergence = 0.5 * (marginal - 1 - np.log(marginal)).sum()
    exact = [entropy - information[0], *(information[:-1] - information[1:])]
    exact += [information[-1] + divergence]
    found = np.stack([detail, *levels, prior])
    stderr = found.std(1) / np.sqrt(COUNT)
    assert (np.abs(found.mean(1) - exact) < 4 * stderr + 1e-3).all()
    assert stderr[1:].max() < 0.1 < information[0] - information[-1]
