"""`--mode=calibrate`: are the reconstructions of `--mode=restore` calibrated?

`WORKDIR/calibration/checkpoint_K/NAME/` gets ranks_*.npz, one file for each round of simulations;
calibration.json and calibration.png.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from api import calibration
from commands.restoration import Given, set_up
from configs.default import Config
from configs.folders import owned
from runs import load_rounds, run_rounds, write_atomically, write_json


def calibrate(
    config: Config,
    workdir: str,
    number: int | None = None,
    folder: str | None = None,
    given: Given = None,
) -> dict[str, Any]:
    """Calibrate the method of config.restore; return the summary, `Calibration.summary`.

    The sampler is chosen as by `commands.restoration.restore`. A run that is stopped continues.
    """
    experiment, _, posterior, sampler, output, depends = set_up(
        "calibrate", config, workdir, number, folder, given
    )
    config, key = experiment.config, experiment.key("calibrate")
    simulations, samples = config.calibrate.simulations, config.calibrate.samples
    batch_size = config.eval.batch_size
    size = max(1, batch_size // samples)

    def compute(index: int) -> dict[str, np.ndarray]:
        found = posterior.ranks(index * size, size, samples, key, sampler, batch_size=batch_size)
        return found._asdict()

    with owned(output, config, "calibration"):
        paths = run_rounds(output, "ranks", -(-simulations // size), compute, depends)
        shape = (len(paths) * size, len(posterior.statistics))
        rounds = load_rounds(paths, ranks=shape, y=(shape[0], -1))
        ranks, y = rounds["ranks"][:simulations], rounds["y"][:simulations]
        result = calibration.judge(ranks, posterior.statistics, y)
        write_json(output / "calibration.json", result.content())
        figure = result.figure()
        write_atomically(output / "calibration.png", lambda file: figure.savefig(file, dpi=100))
    print(f"{result.verdict}\nresults: {output}")
    return result.summary()
