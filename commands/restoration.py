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

import jax.numpy as jnp
import numpy as np

from api.posterior import Posterior
from api.trained import TrainedModel
from commands.models import open_model
from commands.restoration_problems import (
    build_operator,
    build_problem,
    noise_std,
    operator_checksum,
    save_measurements,
)
from commands.restoration_results import measure_quality, write_pictures
from configs.default import Config
from configs.parts import sampler_name
from controllable.methods import METHODS
from controllable.operators import Operator
from experiment import Experiment
from runs import dependencies, load_rounds, owned, results_folder, run_rounds, write_json
from samplers import Sampler


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
    is that of config.sampling if sampling.method is among the fields `given` on the command line,
    and otherwise one that suits the method; None states that all fields are given.

    Raises InputError for invalid values in config.restore, and for images, a workdir or a
    checkpoint that cannot be read.
    """
    experiment = Experiment(config, mode="restore")
    config, options = experiment.config, experiment.config.restore
    operator = build_operator(experiment)
    make_posterior(experiment, experiment.trained_model({}), operator, given)  # Checks the sampler.
    problem = build_problem(experiment, operator)
    opened = open_model(experiment, workdir, number)
    posterior, sampler = make_posterior(experiment, opened.model, operator, given, problem.y)
    name = folder or f"{options.task}-{options.method}"
    output = results_folder(Path(workdir) / "restore" / opened.folder, name, taken=())
    depends = dependencies("answers", config) | opened.identity
    depends["sampler"] = sampler.title
    depends["operator"] = operator_checksum(operator, experiment.image_shape)
    depends["measurements"] = zlib.crc32(np.ascontiguousarray(problem.y).data)
    count, samples, size = len(problem.y), options.samples, config.eval.batch_size
    total = count * samples

    def compute(index: int) -> dict[str, np.ndarray]:
        first, key = index * size, experiment.key("restore")
        drawn = posterior.draw(
            sampler, samples, key, first=first, count=min(size, total - first), batch_size=size
        )
        return {"x": np.asarray(drawn.x), "nfe": np.asarray(drawn.nfe)}

    results = {"task": options.task, "method": options.method, "images": count}
    say_sampler(config, sampler)
    with owned(output, config, "restoration"):
        save_measurements(problem, output)
        paths = run_rounds(output, "answers", -(-total // size), compute, depends)
        rounds = load_rounds(paths, x=(total, *experiment.image_shape), nfe=(total,))
        reconstructions = rounds["x"].reshape(count, samples, *experiment.image_shape)
        results["nfe"] = float(rounds["nfe"].mean())
        results |= measure_quality(experiment, problem, reconstructions)
        write_pictures(experiment, problem, reconstructions, output)
        write_json(output / "results.json", results)
    for key, value in results.items():
        print(f"{key}: {value}")
    print(f"results: {output}")
    return results


def make_posterior(
    experiment: Experiment,
    model: TrainedModel,
    operator: Operator,
    given: Collection[str] | None,
    y: np.ndarray | None = None,
) -> tuple[Posterior, Sampler]:
    """Return the posterior of config.restore and its sampler; see `restore`."""
    options = experiment.config.restore
    posterior = model.posterior(
        None if y is None else jnp.asarray(y),
        operator,
        noise=noise_std(experiment),
        method=options.method,
        **{name: options[name] for name in METHODS[options.method].options},
    )
    chosen = given is None or "sampling.method" in given
    chosen &= METHODS[options.method].loop is None
    name = sampler_name(experiment.config) if chosen else None
    return posterior, posterior.make_sampler(name)


def say_sampler(config: Config, sampler: Sampler) -> None:
    """Print the method and the sampler of config.restore, and how to choose another one."""
    line = f"{config.restore.method} with the sampler {sampler.title}"
    method = METHODS[config.restore.method]
    if method.loop is None and not method.requires_pc:
        line += "; --config.sampling.method=pc, ode or solver selects another one"
    print(line, flush=True)
