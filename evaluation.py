"""`--mode=eval`: evaluation of checkpoints in stages.

Results of checkpoint K are in `WORKDIR/EVAL_FOLDER/checkpoint_K/`: one file for each finished round
of a stage, so that an interrupted evaluation resumes; pictures; and results.json, which holds one
entry for each stage and, under `measures`, the lines that are printed and the rows of the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from configs.default import Config
from configs.folders import check_config, check_workdir, dependencies, owned
from configs.parts import warn_unused
from errors import InputError
from experiment import Experiment
from metrics import held_out, sample_quality, samples_stage
from metrics.stage import Context, Measure, Results
from runs import report, results_folder, write_json
from runs.checkpoints import EMA, Checkpoints, Found
from training import state

STAGES = (held_out.LOSS, held_out.BITS, samples_stage.STAGE, sample_quality.STAGE)
"""All stages in the order in which they run and appear in the report.

A new stage also needs its default, config.eval.enable_NAME, in configs/table.py.
"""


def run(
    config: Config,
    workdir: str,
    *,
    folder: str = "eval",
    number: int | None = None,
    given: Collection[str] = (),
) -> None:
    """Evaluate, and write and name the report; fields `given` without an effect are named."""
    warn_unused(config, given)
    evaluate(config, workdir, folder, number)
    if jax.process_index() == 0:  # The report reads what this process has written.
        print(f"results: {report.write(workdir, folder)}")


def write_report(config: Config, workdir: str, folder: str = "eval") -> None:
    """Write the report of an earlier evaluation again, and print its path."""
    del config
    print(report.write(workdir, folder))


def evaluate(
    config: Config, workdir: str, eval_folder: str = "eval", number: int | None = None
) -> dict[int, Results]:
    """Evaluate the checkpoints begin_ckpt .. end_ckpt of `workdir`; return results by number.

    With a `number`, only that checkpoint is evaluated; if there is none from begin_ckpt to
    end_ckpt, the newest. A stage runs if config.eval.enable_NAME is set. Raise InputError for an
    invalid config, for a workdir or an evaluation folder of another config, for a missing
    classifier, and if no checkpoint can be evaluated.
    """
    experiment = Experiment(config)
    config = experiment.config
    stages = [stage for stage in STAGES if config.eval[f"enable_{stage.name}"]]
    if not stages:
        names = ", ".join(f"eval.enable_{stage.name}" for stage in STAGES)
        raise InputError(f"nothing to evaluate: set one of {names}.")
    for stage in stages:
        stage.check(experiment)
    check_workdir(workdir, config)
    folder = results_folder(workdir, eval_folder)
    check_config(folder, config, "evaluation")
    selected = _select(Checkpoints(workdir), config, number)
    if any(stage.kind == "samples" for stage in stages):
        experiment.load_guidance(workdir)
    prepared = {stage.name: stage.prepare(experiment, Path(workdir)) for stage in stages}
    results = {}
    with owned(folder, config, "evaluation"):
        report.note_environment(folder, experiment.mesh)
        for found in selected:
            ema = _restore(experiment, workdir, found)
            if ema is not None:
                context = Context(experiment, ema, folder / f"checkpoint_{found.number}")
                results[found.number] = _evaluate(context, workdir, found, prepared)
    if not results:
        raise InputError(
            f"None of the {len(selected)} selected checkpoints of {workdir} can be read; the "
            "warnings above state why. Choose others with --checkpoint."
        )
    return results


def _select(checkpoints: Checkpoints, config: Config, number: int | None) -> list[Found]:
    """The checkpoints to evaluate, in order. Raise InputError if there are none."""
    if number is not None:
        return [checkpoints.pick(number)]
    begin, end = config.eval.begin_ckpt, config.eval.end_ckpt
    snapshots = sorted(checkpoints.snapshots().items())
    selected = [found for number, found in snapshots if begin <= number <= end]
    if not selected:
        selected = [checkpoints.pick(None)]
        asked = f"eval.begin_ckpt = {begin} to eval.end_ckpt = {end}"
        print(f"no checkpoint from {asked}; the newest is evaluated: {selected[0]}", flush=True)
    return selected


def _restore(experiment: Experiment, workdir: str, found: Found) -> Any:
    """Return the EMA parameters of a checkpoint; None, with a warning, if it cannot be read."""
    try:
        ema = Checkpoints(workdir).restore(found, {EMA: experiment.abstract_params})[EMA]
    except InputError as error:
        logging.warning("%s This checkpoint is skipped.", error)
        return None
    model = experiment.config.model
    note = state.initial_share_note(model.ema_rate, model.ema_ramp, found.step)
    if note and not experiment.config.ema.std:  # of a file that --mode=ema wrote
        print(f"{found}: {note}", flush=True)
    return ema


def _evaluate(context: Context, workdir: str, found: Found, prepared: dict[str, Any]) -> Results:
    """Run the prepared stages for one checkpoint, write results.json, and print the measures."""
    experiment = context.experiment
    context.folder.mkdir(exist_ok=True)
    result: Results = {"step": found.step}
    measures: list[Measure] = []
    for stage in (stage for stage in STAGES if stage.name in prepared):
        depends = dependencies(stage.kind, experiment.config) | experiment.identity(workdir, found)
        if stage.kind == "samples":
            depends |= experiment.sample_inputs()
        inputs = dataclasses.replace(context, prepared=prepared[stage.name], depends=depends)
        result[stage.key] = stage.run(inputs)
        measures += stage.measures(result[stage.key])
    result["measures"] = [each._asdict() for each in measures]
    write_json(context.folder / "results.json", result)
    print(f"{found}:\n{table(measures)}\nfiles: {context.folder}", flush=True)
    return result


def table(measures: Sequence[Measure]) -> str:
    """The measures as text, one a line: name, value +- standard error, and the note."""
    width = max((len(each.name) for each in measures), default=0)
    lines = []
    for each in measures:
        value = "-" if each.value is None else f"{each.value:.4g}"
        if each.value is not None and each.stderr is not None:
            value = f"{each.value:.4f} +- {each.stderr:.4f}"
        lines.append(f"  {each.name:<{width}}  {value:<18}  {each.note}".rstrip())
    return "\n".join(lines)
