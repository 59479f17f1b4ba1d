"""`--mode=calibrate`: is the spread of the reconstructions of `--mode=restore` right?

Images of the model are measured by the task of config.restore, and each measurement is solved many
times; `api.calibration` tests whether the images are distributed as their reconstructions.
Results are written to `WORKDIR/calibration/checkpoint_K/NAME/`; NAME is TASK-METHOD, or
--eval_folder if given. They are ranks_*.npz, one file for each round of simulations;
calibration.json and calibration.png.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from api import calibration
from api.posterior import Posterior
from api.settings import METHOD_DEFAULTS
from api.trained import TrainedModel
from commands.restoration import noise_std, say_sampler, with_sampler
from commands.restoration_problems import operator_checksum
from commands.restoration_tasks import TASKS
from configs.default import Config
from errors import choose
from experiment import Experiment
from runs import (
    dependencies,
    load_rounds,
    owned,
    results_folder,
    run_rounds,
    write_atomically,
    write_json,
)


def calibrate(
    config: Config,
    workdir: str,
    number: int | None = None,
    folder: str | None = None,
    given: Collection[str] | None = None,
) -> dict[str, Any]:
    """Calibrate the method of config.restore; return the summary, `Calibration.summary`.

    The sampler is that of config.sampling, as `with_sampler` changes it with the fields `given`, on
    one device. A run that is stopped continues.

    Raises InputError for an invalid config, and for a workdir or a checkpoint that cannot be read.
    """
    config = with_sampler(config, given)
    experiment = Experiment(config, jax.local_devices()[:1], mode="calibrate")
    config, options = experiment.config, experiment.config.restore
    operator = choose(TASKS, options.task, "restore.task")(options, experiment.image_shape)
    found, params = experiment.trained(workdir, number)
    model = TrainedModel(experiment, params, found.step)
    posterior = model.posterior(
        None,
        operator,
        noise=noise_std(experiment),
        method=options.method,
        **{name: options[name] for name in METHOD_DEFAULTS},
    )
    name = folder or f"{options.task}-{options.method}"
    parent = Path(workdir) / "calibration" / f"checkpoint_{found.number}"
    output = results_folder(parent, name, taken=())
    depends = dependencies("ranks", config) | experiment.identity(workdir, found)
    depends["operator"] = operator_checksum(operator, experiment.image_shape)
    say_sampler(config)
    with owned(output, config, "calibration"):
        ranks = _ranks(experiment, posterior, output, depends)
        result = calibration.judge(ranks, posterior.statistics)
        write_json(output / "calibration.json", result.content())
        figure = result.figure()
        write_atomically(output / "calibration.png", lambda file: figure.savefig(file, dpi=100))
    print(result.verdict)
    print(f"results: {output}")
    return result.summary()


def _ranks(
    experiment: Experiment, posterior: Posterior, output: Path, depends: dict[str, Any]
) -> np.ndarray:
    """Return the ranks of all simulations (N, K), in rounds that a later run reuses."""
    config = experiment.config
    simulations, samples = config.calibrate.simulations, config.calibrate.samples
    size = max(1, config.eval.batch_size // samples)
    method = config.sampling.method.lower()
    sampler = config.sampling.solver.lower() if method == "solver" else method
    key = experiment.key("calibrate")
    count = -(-simulations // size)

    def compute(index: int) -> dict[str, np.ndarray]:
        logging.info("round %d of %d", index + 1, count)
        ranks = posterior.ranks(
            index * size,
            size,
            samples,
            key,
            sampler=sampler,
            batch_size=config.eval.batch_size,
        )
        return {"ranks": ranks}

    paths = run_rounds(output, "ranks", count, compute, depends)
    return load_rounds(paths)["ranks"][:simulations]
