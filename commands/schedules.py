"""`--mode=fit_schedule`: noise levels for few steps, fitted to a trained model.

They are for config.sampling.solver with config.sampling.num_steps steps. `--mode=sample` and
`score_sde.load` then use them for this sampler (`loading.read_schedules`).
"""

from __future__ import annotations

from pathlib import Path

from api.fitting import EVENTS, check_solver
from commands.models import open_model
from configs.default import Config, complete
from experiment import Experiment
from loading import write_schedule


def fit(
    config: Config, workdir: str, *, number: int | None = None, source: str | None = None
) -> Path:
    """Fit noise levels to checkpoint `number`, by default the newest, or to the model in `source`.

    Returns the file, `schedules.json` in the workdir or `NAME.schedules.json` beside the source.
    Images are conditioned as by `commands.samples.sample`.

    Raises InputError for an invalid config, a solver or a number of steps for which levels cannot
    be fitted, and a model that cannot be read.
    """
    config = complete(config)
    config.sampling.method = "solver"  # Another sampler may need more steps.
    experiment = Experiment(config)
    options = experiment.config.sampling
    solver, steps = options.solver.lower(), options.num_steps or 20
    check_solver(solver, steps)
    experiment.load_guidance(workdir)
    opened = open_model(experiment, workdir, number, source)
    model = opened.model.given(experiment.sample_condition(0, EVENTS), **experiment.guidance)
    print(f"{opened.title}: fitting the noise levels of {steps} steps of {solver!r}", flush=True)
    fitted = model.fit_schedule(steps, sampler=solver, seed=experiment.config.seed)
    path = write_schedule(source or workdir, opened.model.params, fitted)
    print(f"noise levels: {', '.join(f'{level:.4g}' for level in fitted.levels)}\nwritten: {path}")
    return path
