"""The figures of docs/how_it_works.md: a closed form that one shows, and the script."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from docs import make_figures
from sde_lib import VPSDE
from tests import gaussian

TINY = {  # Arguments with which each figure is drawn in seconds.
    "process": {"network": "digits_vp", "steps": 30},
    "trajectories": {},
    "samplers": {"network": "digits_vp", "evaluations": (4, 30), "count": 2},
    "bits_by_level": {"count": 8, "levels": 16},
}


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_the_script(name, tmp_path):
    """Without tiny arguments the committed figure is drawn, up to rendering of other versions."""
    make_figures.draw(name, tmp_path / "drawn.png", **TINY[name])
    drawn, committed = (
        np.asarray(Image.open(path).convert("L"), float)
        for path in (tmp_path / "drawn.png", make_figures.FOLDER / f"{name}.png")
    )
    assert drawn.shape[1] == committed.shape[1]
    assert len(np.unique(drawn)) > 20
    assert TINY[name] or np.abs(drawn - committed).mean() < 2


def test_bits_of_noise_levels():
    """They are differences of the informations of Gaussian data and its noised versions."""
    sde, std = VPSDE(), np.linspace(0.1, 1, 12).reshape(2, 2, 3)
    sigma = np.geomspace(0.1, 10, 6)
    x = jnp.float32(std * jax.random.normal(jax.random.key(0), (20_000, *std.shape)))
    score = gaussian.score(sde, 0.0, std)
    found = make_figures.level_bits(score, sde, x, jax.random.key(1), sigma)
    information = 0.5 * np.log2(1 + std.reshape(-1, 1) ** 2 / sigma**2).mean(0)
    np.testing.assert_allclose(found, -np.diff(information), rtol=0.02)
