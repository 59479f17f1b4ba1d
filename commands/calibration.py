"""`--mode=calibrate`: are the reconstructions of `--mode=restore` calibrated?

Images of the model are measured by the task of config.restore, and each measurement is solved many
times; `api.calibration` tests whether the images are distributed as their reconstructions.
Results are written to `WORKDIR/calibration/checkpoint_K/NAME/`; NAME is TASK-METHOD, or
--eval_folder if given. They are ranks_*.npz, one file for each round of simulations;
calibration.json and calibration.png.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from api import calibration
from commands.restoration import set_up
from configs.default import Config
from configs.folders import owned
from runs import load_rounds, run_rounds, write_atomically, write_json


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
    experiment, _, posterior, sampler, output, depends = set_up(
        "calibrate", config, workdir, number, folder, given
    )
    config = experiment.config
    simulations, samples = config.calibrate.simulations, config.calibrate.samples
    batch_size, key = config.eval.batch_size, experiment.key("calibrate")
    size = max(1, batch_size // samples)

    def compute(index: int) -> dict[str, np.ndarray]:
        first = index * size
        found = posterior.ranks(first, size, samples, key, sampler, batch_size=batch_size)
        return found._asdict()

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
