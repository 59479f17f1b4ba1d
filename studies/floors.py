"""What the numbers of the digits mean: floors of distances, and simple methods beside inpainting.

python -m studies.floors [--write]

Prints two tables of docs/claims.md, and with --write puts them into the page. A sampler that
memorizes the training images has the distance of the floor, because held-out images differ from
them. Inpainting by simple methods shows what the class of an inpainted digit says.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.tables import header, row
from score_sde import TrainedModel, operators
from studies import common
from studies.claims_measured import SHARE, classes
from studies.distances import floor, held_out, nearest

OPTIONS = {"write": False}
COUNTS = (1000, 5000)
IMAGES, SAMPLES = 100, 2  # held-out digits, and posterior samples of each


def floors(model: TrainedModel) -> list[str]:
    """Return the distances of training digits, drawn with replacement, to the held-out ones."""
    lines = header("samples", "floor")
    return [*lines, *(row(str(count), str(floor(model, count))) for count in COUNTS)]


def inpainted(model: TrainedModel) -> dict[str, np.ndarray]:
    """Return held-out digits (n, 8, 8, 1) whose center is filled by each method."""
    truth = np.asarray(model.from_images(held_out(model, IMAGES)))
    training = np.asarray(model.from_images(np.asarray(common.images(model, "train").pixels)))
    known = operators.box(model.event_shape, SHARE)
    operator = operators.mask(known)
    y = np.asarray(operator.forward(truth))
    found = {
        "the digits themselves": truth,
        "gray": np.where(known, truth, 0),
        "mean of the training digits": np.where(known, truth, training.mean(0)),
        "nearest training digit": np.where(known, truth, nearest(training, operator, y)),
    }
    y = np.repeat(y, SAMPLES, 0)
    chain: dict[str, Any] = {"predictor": "reverse_diffusion", "corrector": "none", "sampler": "pc"}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "`projection`, 100 steps": ({"method": "projection"}, chain | {"steps": 100}),
        "`projection`, 1,000 steps": ({"method": "projection"}, chain | {"steps": 1000}),
        "`moment_matching`, 5 iterations": ({"method": "moment_matching", "iterations": 5}, {}),
    }
    for title, (given, options) in cases.items():
        posterior = model.posterior(y, operator, noise=0.0, **given)
        found[title] = np.asarray(posterior.sample(seed=0, **options))
    return found


def kept(model: TrainedModel) -> list[str]:
    """Return the shares of digits that keep their class, by method."""
    found, lines = inpainted(model), header("center", "class of the original", "error")
    truth = found["the digits themselves"]
    right = classes(model, truth)
    for title, images in found.items():
        times = len(images) // len(truth)
        same = (classes(model, images) == np.repeat(right, times)).reshape(-1, times).mean(1)
        error = np.sqrt(np.square(images - np.repeat(truth, times, 0)).mean() / SHARE**2)
        lines.append(row(title, str(common.mean(same)), f"{error:.3f}"))
    return lines


def main(_: argparse.Namespace) -> dict[str, list[str]]:
    model = common.load("zoo/digits_vp.safetensors")
    return {"floors": floors(model), "centers": kept(model)}


if __name__ == "__main__":
    common.run(main, OPTIONS, "claims.md")
