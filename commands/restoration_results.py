"""The quality of reconstructions of `--mode=restore`, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import datasets
from commands.restoration_problems import Problem
from controllable.measurements import Measurement
from controllable.tasks import TASKS
from experiment import Experiment
from runs import write_picture


def measure_quality(
    experiment: Experiment, problem: Problem, reconstructions: np.ndarray
) -> dict[str, float]:
    """Return misfit, PSNR and SSIM, see `restore`, of reconstructions (N, S, H, W, C)."""
    # Its import fails if no folder for temporary files is writable, and other modes need no such.
    import dm_pix

    count, samples = reconstructions.shape[:2]
    low, high = experiment.image_range
    measurement = Measurement(problem.operator, jnp.asarray(problem.y))
    residual = jax.jit(measurement.residual)
    squares = [np.abs(residual(reconstructions[:, s])) ** 2 for s in range(samples)]
    measured = np.broadcast_to(problem.operator.measured, squares[0].shape)
    results = {"misfit": float(np.sqrt(np.mean(squares, 0)[measured].mean()) / (high - low))}
    if problem.truth is None:
        return results

    def scale(x: np.ndarray) -> np.ndarray:
        return (np.clip(x, low, high) - low) / (high - low)

    window = min(11, *experiment.image_shape[:2])
    candidates = {
        "answers": reconstructions.reshape(-1, *experiment.image_shape),
        "mean": reconstructions.mean(1),
        "pseudo_inverse": np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y))),
    }
    for name, x in candidates.items():
        pair = scale(np.repeat(problem.truth, len(x) // count, 0)), scale(x)
        ssim = dm_pix.ssim(*pair, filter_size=window)  # Its convolutions are exact.
        results[f"psnr_{name}"] = float(np.mean(dm_pix.psnr(*pair)))
        results[f"ssim_{name}"] = float(np.mean(ssim))
    return results


def write_pictures(
    experiment: Experiment, problem: Problem, reconstructions: np.ndarray, folder: Path
) -> None:
    """Write grid.png, and the measurement and reconstructions of each image as separate files.

    Measurements are shown as their pseudo-inverse, except for blurred images.
    """

    def pixels(x: np.ndarray) -> np.ndarray:
        return np.asarray(experiment.pixels(jnp.asarray(x)))

    measured = problem.y
    if not TASKS[experiment.config.restore.task].is_shown:
        measured = np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y)))
    std = reconstructions.std(1, ddof=min(1, reconstructions.shape[1] - 1))
    low, high = experiment.image_range
    std_image = low + (high - low) * std / max(std.max(), 1e-6)
    columns = {} if problem.truth is None else {"image": problem.truth}
    columns["measurement"] = measured
    for s, reconstruction in enumerate(reconstructions.swapaxes(0, 1)):
        columns[f"sample {s + 1}"] = reconstruction
    columns |= {"mean": reconstructions.mean(1), "spread": std_image}
    grid = pixels(np.stack([*columns.values()], 1)).reshape(-1, *experiment.image_shape)
    write_picture(folder / "grid.png", datasets.image_grid(grid, titles=[*columns]))
    for name, image, own_reconstructions in zip(
        problem.names, pixels(measured), pixels(reconstructions)
    ):
        write_picture(folder / f"{name}_measured.png", datasets.to_picture(image))
        for s, reconstruction in enumerate(own_reconstructions):
            picture = datasets.to_picture(reconstruction)
            write_picture(folder / f"{name}_answer_{s}.png", picture)
