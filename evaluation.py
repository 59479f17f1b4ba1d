"""`--mode=eval`: evaluation of checkpoints by the stages of `metrics.stages`.

Results of checkpoint K are in `WORKDIR/EVAL_FOLDER/checkpoint_K/`: one file for each finished round
of a stage, so that an interrupted evaluation resumes; pictures; and results.json, which holds one
entry for each stage and, under `measures`, the rows of the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import train_state
from absl import logging
from auxiliary import classification, dequantization

import report
from configs.default import Config
from errors import InputError
from experiment import Experiment
from metrics.splits import check_images, images_of
from metrics.stage import Cell, Context, Results, Stage
from metrics.stages import STAGES
from runs import (
    check_config,
    check_workdir,
    dependencies,
    owned,
    results_folder,
    write_json,
)
from runs.checkpoints import Checkpoints, Found, tree_checksum


def evaluate(
    config: Config, workdir: str, eval_folder: str = "eval", number: int | None = None
) -> dict[int, Results]:
    """Evaluate the checkpoints begin_ckpt .. end_ckpt of `workdir`; return results by number.

    With a `number`, only that checkpoint is evaluated; if there is none from begin_ckpt to
    end_ckpt, the newest. A stage runs if config.eval.enable_NAME is set. Raise InputError for an
    invalid config, for a workdir or an evaluation folder of another config, for a missing
    dequantizer or classifier, and if no checkpoint can be evaluated.
    """
    experiment = Experiment(config)
    config = experiment.config
    stages = _enabled_stages(config)
    for stage in stages:
        stage.check(experiment)
        if stage.split is not None:
            check_images(experiment, stage.split(config))
    check_workdir(workdir, config)
    folder = results_folder(workdir, eval_folder)
    check_config(folder, config, "evaluation")
    if any(stage.needs_classifier for stage in stages):
        classification.provide(experiment, workdir)
    checkpoints = Checkpoints(workdir)
    selected = _select(checkpoints, config, number)
    if any(stage.needs_dequantizer for stage in stages):
        _check_dequantizers(experiment, workdir, checkpoints, selected)
    prepared = {stage.name: stage.prepare(experiment, Path(workdir)) for stage in stages}
    with owned(folder, config, "evaluation"):
        report.note_environment(folder, experiment.mesh)
        results = _evaluate(experiment, workdir, folder, stages, prepared, checkpoints, selected)
    if not results:
        raise InputError(
            f"None of the {len(selected)} selected checkpoints of {workdir} can be read; the "
            "warnings above state why. Choose others with --checkpoint."
        )
    print(_table(results))
    return results


def _check_dequantizers(
    experiment: Experiment, workdir: str, checkpoints: Checkpoints, selected: Sequence[Found]
) -> None:
    """Raise InputError if the dequantizer of a checkpoint is missing or cannot be used.

    Checkpoints that cannot be read need none, because they are skipped.
    """
    for found in selected:
        try:
            dequantization.make(experiment, workdir, found.number)
        except InputError:
            if _restore(experiment, checkpoints, found) is not None:
                raise


def _restore(experiment: Experiment, checkpoints: Checkpoints, found: Found) -> Any:
    """Return the EMA parameters of a checkpoint; None, with a warning, if it cannot be read."""
    try:
        return train_state.restore_ema(checkpoints, found, experiment.abstract_params)
    except InputError as error:
        logging.warning("%s This checkpoint is skipped.", error)
        return None


def _evaluate(
    experiment: Experiment,
    workdir: str,
    folder: Path,
    stages: Sequence[Stage],
    prepared: dict[str, Any],
    checkpoints: Checkpoints,
    selected: Sequence[Found],
) -> dict[int, Results]:
    """Run the stages for the selected checkpoints; skip those that cannot be read."""
    results = {}
    for found in selected:
        ema = _restore(experiment, checkpoints, found)
        if ema is None:
            continue
        dequantize = None
        if any(stage.needs_dequantizer for stage in stages):
            dequantize = dequantization.make(experiment, workdir, found.number)
        note = train_state.initial_share_note(experiment.config.model, found.step)
        if note and not experiment.config.ema.std:  # of a file that --mode=ema wrote
            print(f"{found}: {note}", flush=True)
        context = Context(experiment, ema, folder / f"checkpoint_{found.number}", dequantize)
        inputs = [
            dataclasses.replace(
                context,
                prepared=prepared[stage.name],
                depends=_depends(experiment, stage, workdir, found),
            )
            for stage in stages
        ]
        results[found.number] = _evaluate_checkpoint(found.step, stages, inputs)
    return results


def _enabled_stages(config: Config) -> list[Stage]:
    """The enabled stages. Raise InputError if there are none, or one requires another stage."""
    stages = [stage for stage in STAGES if config.eval[f"enable_{stage.name}"]]
    names = [stage.name for stage in stages]
    for stage in stages:
        missing = [name for name in stage.requires if name not in names]
        if missing:
            raise InputError(
                f"eval.enable_{stage.name} = True requires eval.enable_{missing[0]} = True. Set "
                f"--config.eval.enable_{missing[0]} (finished rounds on disk are reused), or "
                f"--noconfig.eval.enable_{stage.name}."
            )
    if not stages:
        names = ", ".join(f"eval.enable_{stage.name}" for stage in STAGES)
        raise InputError(f"nothing to evaluate: set one of {names}.")
    return stages


def _select(checkpoints: Checkpoints, config: Config, number: int | None) -> list[Found]:
    """The checkpoints to evaluate, in order. Raise InputError if there are none."""
    if number is not None:
        return [checkpoints.pick(number)]
    snapshots = checkpoints.snapshots()
    begin, end = config.eval.begin_ckpt, config.eval.end_ckpt
    selected = [snapshots[number] for number in sorted(snapshots) if begin <= number <= end]
    if not selected:
        newest = checkpoints.pick(None)
        print(
            f"no checkpoint from eval.begin_ckpt = {begin} to eval.end_ckpt = {end}; the newest is "
            f"evaluated: {newest}",
            flush=True,
        )
        return [newest]
    return selected


def _depends(experiment: Experiment, stage: Stage, workdir: str, found: Found) -> dict[str, Any]:
    """Describe everything that the rounds of a stage are computed from, as JSON."""
    depends = dependencies(stage.kind, experiment.config) | experiment.identity(workdir, found)
    if stage.split is not None:
        depends["data"] = images_of(experiment, stage.split(experiment.config)).digest
    if stage.needs_dequantizer:
        depends["dequantizer"] = dequantization.identity(experiment, workdir, found.number)
    if stage.needs_classifier and experiment.classifier is not None:
        depends["classifier"] = tree_checksum(experiment.classifier)
    return depends


def _evaluate_checkpoint(
    step: int, stages: Sequence[Stage], contexts: Sequence[Context]
) -> Results:
    """Run each stage with its context for one checkpoint, and write its results.json."""
    folder = contexts[0].folder
    folder.mkdir(exist_ok=True)
    result: Results = {"step": step}
    measures = []
    for stage, context in zip(stages, contexts):
        entry = stage.run(context)
        result[stage.key] = entry
        measures += [measure._asdict() for measure in stage.measures(entry)]
    result["measures"] = measures
    write_json(folder / "results.json", result)
    return result


# --- the printed table ---


def _table(results: dict[int, Results]) -> str:
    """The results of all checkpoints as text: one table, and one for each `separate_table`."""
    shared = [stage for stage in STAGES if not stage.separate_table]
    separate = [stage for stage in STAGES if stage.separate_table]

    def shared_cells(result: Results) -> list[Cell]:
        cells = [Cell("step", str(result["step"]), width=8)]
        for stage in shared:
            cells += stage.cells(result.get(stage.key))
        return cells

    lines = _rows(results, shared_cells)
    for stage in separate:
        entries = _entries(results, stage)
        if entries:
            lines += [*_rows(entries, stage.cells), *stage.notes(list(entries.values()))]
    for stage in shared:
        lines += stage.notes(list(_entries(results, stage).values()))
    return "\n".join(lines)


def _entries(results: dict[int, Results], stage: Stage) -> dict[int, Results]:
    """The entries of a stage, by the number of the checkpoint."""
    return {number: result[stage.key] for number, result in results.items() if stage.key in result}


def _rows(results: dict[int, Results], cells: Callable[[Results], list[Cell]]) -> list[str]:
    """The lines of one table: titles, which are those of the first checkpoint, then cells."""
    rows = []
    for number, result in results.items():
        rows.append([Cell("checkpoint", str(number), width=10), *cells(result)])
    titles = "  ".join(f"{cell.title:>{cell.width}}" for cell in rows[0])
    return [titles, *("  ".join(f"{cell.text:>{cell.width}}" for cell in row) for row in rows)]
