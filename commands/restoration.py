"""`--mode=restore`: reconstruct images from incomplete, blurred or noisy measurements of them.

The prior is an unconditional score model. Results are written to
`WORKDIR/restore/checkpoint_K/NAME/`; NAME is TASK-METHOD, or --eval_folder if given. They are
measurements.npz; answers_*.npz, one file of reconstructions for each round; grid.png, one row for
each image (the image if known, the measurement, its reconstructions as `sample 1` and so on, their
mean and their standard deviation as `spread`); each reconstruction by itself; and results.json.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

import sampling
import sharding
from commands.restoration_problems import (
    Problem,
    build_problem,
    noise_std,
    operator_checksum,
    save_measurements,
)
from commands.restoration_results import measure_quality, write_pictures
from configs import remedies
from configs.default import Config, complete
from controllable.measurements import Measurement
from controllable.methods import METHODS, posterior_loop
from controllable.operators import Operator
from experiment import Experiment, InParts
from models.building import Params
from runs import (
    Depends,
    dependencies,
    load_rounds,
    owned,
    results_folder,
    run_rounds,
    write_json,
)
from solvers import Loop


def restore(
    config: Config,
    workdir: str,
    number: int | None = None,
    folder: str | None = None,
    given: Collection[str] | None = None,
) -> dict[str, Any]:
    """Run the task of config.restore; return the content of results.json.

    These are the root mean square of y - A x per measured entry, in units of the range of images,
    the number of score evaluations and, if the images are known, PSNR (dB) and SSIM of the
    reconstructions, of their mean and of the pseudo-inverse, each averaged over images. The sampler
    is that of config.sampling, as `with_sampler` changes it with the fields `given`.

    Raises InputError for invalid values in config.restore, and for images, a workdir or a
    checkpoint that cannot be read.
    """
    experiment = Experiment(with_sampler(config, given), mode="restore")
    config, options = experiment.config, experiment.config.restore
    if METHODS[options.method].uses_predictor:
        experiment.sampler.check_stable()
    problem = build_problem(experiment)
    found, params = experiment.trained(workdir, number)
    name = folder or f"{options.task}-{options.method}"
    parent = Path(workdir) / "restore" / f"checkpoint_{found.number}"
    output = results_folder(parent, name, taken=())
    depends = dependencies("answers", config) | experiment.identity(workdir, found)
    depends["operator"] = operator_checksum(problem.operator, experiment.image_shape)
    depends["measurements"] = zlib.crc32(np.ascontiguousarray(problem.y).data)
    results = {"task": options.task, "method": options.method, "images": len(problem.y)}
    say_sampler(config)
    with owned(output, config, "restoration"):
        save_measurements(problem, output)
        reconstructions, results["nfe"] = solve(experiment, problem, params, output, depends)
        results |= measure_quality(experiment, problem, reconstructions)
        write_pictures(experiment, problem, reconstructions, output)
        write_json(output / "results.json", results)
    for key, value in results.items():
        print(f"{key}: {value}")
    print(f"results: {output}")
    return results


def with_sampler(config: Config, given: Collection[str] | None = None) -> Config:
    """Return the complete config with a sampler that suits config.restore.method.

    That is, without a corrector if the method allows none. A method that works with every sampler
    gets a few-step solver, unless sampling.method is among the fields `given` on the command line;
    None states that all fields are.
    """
    config = complete(config)
    method = METHODS.get(config.restore.method)
    if method and not method.allows_corrector:
        config.sampling.corrector = "none"
    chosen = given is not None and "sampling.method" not in given
    if method and not method.requires_pc and chosen:
        config.sampling.method = "solver"
    return config


def say_sampler(config: Config) -> None:
    """Print the method and the sampler of config.restore, and how to choose another one."""
    line = f"{config.restore.method} with the sampler {remedies.describe(config)}"
    if not METHODS[config.restore.method].requires_pc:
        line += "; --config.sampling.method=pc, ode or solver selects another one"
    print(line, flush=True)


def solve(
    experiment: Experiment, problem: Problem, params: Params, folder: Path, depends: Depends
) -> tuple[np.ndarray, float]:
    """Draw restore.samples reconstructions of each image in rounds, and resume finished rounds.

    `depends` describes everything that the reconstructions are made from.

    Returns reconstructions (N, S, H, W, C) in the model's range, S = restore.samples, and the mean
    number of score evaluations for one of them. Raises NotFiniteError if one is not finite.
    """
    config = experiment.config
    count, devices = len(problem.y), experiment.mesh.size
    size = min(config.eval.batch_size, -(-count // devices) * devices)
    batches = -(-count // size)
    run = compile_solver(experiment, problem.operator)

    def compute(index: int) -> dict[str, np.ndarray]:
        sample, batch = divmod(index, batches)
        first = batch * size
        indices = np.arange(first, first + size)
        inputs = experiment.rows((problem.y[indices % count], indices))
        valid = min(size, count - first)  # The rest of the last batch is padding.
        text = f"reconstruction {sample + 1} of {config.restore.samples}, {valid} images"
        x, nfe, bad_step = sharding.fetch(run(text, params, *inputs, sample))
        steps, unit = experiment.sampler.steps, experiment.sampler.unit
        remedies.check_samples(config, bad_step[:valid], steps, unit, mode="restore")
        return {"x": x[:valid], "nfe": nfe[:valid]}

    paths = run_rounds(folder, "answers", config.restore.samples * batches, compute, depends)
    rounds = load_rounds(paths)
    reconstructions = rounds["x"].reshape(-1, count, *experiment.image_shape).swapaxes(0, 1)
    return reconstructions, float(rounds["nfe"].mean())


def compile_solver(experiment: Experiment, operator: Operator) -> InParts:
    """Return the compiled, sharded solver for one reconstruction of each image of a batch.

    (params, y (B, ...), image indices (B,), index of the reconstruction) -> x (B, H, W, C), score
    evaluations (B,) and `Samples.bad_step` (B,).
    """
    options, std = experiment.config.restore, noise_std(experiment)
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    def prepare(params: Params, y: Array, indices: Array, sample: Array) -> tuple[Loop, Array]:
        root = jax.random.fold_in(experiment.key("restore"), sample)
        loop, start = posterior_loop(
            options.method,
            options,
            experiment.sampler,
            sampling.image_keys(root, indices),
            experiment.score(params),
            experiment.sde,
            Measurement(operator, y, std),
            experiment.image_shape,
            support=experiment.image_range,
        )
        return loop.then(lambda samples: (samples.x, samples.nfe, samples.bad_step)), start

    inputs = (whole, split, split, whole)
    return InParts(prepare, experiment.sampler, experiment.mesh, inputs, split)
