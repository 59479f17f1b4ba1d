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

import numpy as np

from api import calibration
from commands.models import open_model
from commands.restoration import make_posterior, say_sampler
from commands.restoration_problems import build_operator, operator_checksum
from configs.default import Config
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

    The sampler is chosen as by `commands.restoration.restore`. A run that is stopped continues.

    Raises InputError for an invalid config, and for a workdir or a checkpoint that cannot be read.
    """
    experiment = Experiment(config, mode="calibrate")
    config, options = experiment.config, experiment.config.restore
    operator = build_operator(experiment)
    make_posterior(experiment, experiment.trained_model({}), operator, given)  # Checks the sampler.
    opened = open_model(experiment, workdir, number)
    posterior, sampler = make_posterior(experiment, opened.model, operator, given)
    name = folder or f"{options.task}-{options.method}"
    output = results_folder(Path(workdir) / "calibration" / opened.folder, name, taken=())
    depends = dependencies("ranks", config) | opened.identity
    depends["sampler"] = sampler.title
    depends["operator"] = operator_checksum(operator, experiment.image_shape)
    simulations, samples = config.calibrate.simulations, config.calibrate.samples
    size = max(1, config.eval.batch_size // samples)

    def compute(index: int) -> dict[str, np.ndarray]:
        key, batch_size = experiment.key("calibrate"), config.eval.batch_size
        first, count = index * size, size
        found = posterior.ranks(first, count, samples, key, sampler, batch_size=batch_size)
        return found._asdict()

    say_sampler(config, sampler)
    with owned(output, config, "calibration"):
        paths = run_rounds(output, "ranks", -(-simulations // size), compute, depends)
        shape = (len(paths) * size, len(posterior.statistics))
        rounds = load_rounds(paths, ranks=shape, y=(len(paths) * size, -1))
        ranks, y = rounds["ranks"][:simulations], rounds["y"][:simulations]
        result = calibration.judge(ranks, posterior.statistics, y)
        write_json(output / "calibration.json", result.content())
        figure = result.figure()
        write_atomically(output / "calibration.png", lambda file: figure.savefig(file, dpi=100))
    print(result.verdict)
    print(f"results: {output}")
    return result.summary()
