"""Ten evaluations at fitted noise levels, beside predictor and corrector with 2,000.

python -m studies.few_steps --folder=DIR [--samples=1000] [--pc=250] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page. The networks of VP and
VE are those of zoo/; the others are trained in DIR. A run that is stopped resumes. Levels are
fitted without images, and distances are to held-out ones.
"""

from __future__ import annotations

import argparse
import functools
import importlib
from pathlib import Path
from typing import Any

from benchmarks.records import Records
from benchmarks.tables import header, row
from configs.default import complete
from score_sde import TrainedModel
from studies import common
from studies.common import Estimate
from studies.distances import distance, floor
from studies.sampling import CORRECTED, measure

OPTIONS = {"folder": "", "samples": 1000, "pc": 250, "write": False}
ZOO = {"VP": "digits_vp", "VE": "digits_ve"}
TRAINED = {"sub-VP": "subvp.digits_ddpmpp_continuous", "EDM": "edm.digits_ddpmpp"}
TRAINING_STEPS, STEPS, BATCH = 800, 10, 250
CASES = [("dpm++_2m_sde", "log_snr"), ("dpm++_2m_sde", "fitted"), ("dpm++_2m", "karras")]
CASES += [("dpm++_2m", "fitted"), ("unipc_2", "karras")]
"""Solvers and schedules; those on 'karras' are diffusers' schedulers with `use_karras_sigmas`."""


def network(name: str, folder: Path) -> TrainedModel:
    """Return a network, which is trained if it is not in zoo/."""
    if name in ZOO:
        return common.load(common.zoo(ZOO[name]))
    config = importlib.import_module(f"configs.{TRAINED[name]}").get_config()
    config.training.update(n_iters=TRAINING_STEPS, snapshot_sampling=False)
    config.training.update(snapshot_freq=400, snapshot_freq_for_preemption=400, eval_freq=400)
    return common.load(common.train(complete(config), folder))


def column(name: str, options: argparse.Namespace, records: Records) -> dict[str, str]:
    """Return distances and what their squares exceed that of the floor, by the titles of rows."""
    model = network(name, Path(options.folder))
    of_model = functools.partial(distance, model)
    chain = {"name": "pc", "steps": 1000, "corrector": "langevin"}
    chain |= CORRECTED.get(name, CORRECTED["VE"])
    cases: dict[str, tuple[int, dict[str, Any]]] = {f"PC, {options.pc}": (options.pc, chain)}
    for solver, schedule in CASES:
        case: dict[str, Any] = {"name": solver, "schedule": schedule, "steps": STEPS}
        if schedule == "fitted":
            levels = model.fit_schedule(STEPS, sampler=solver).levels
            case = {"name": solver, "schedule": levels}
        cases[f"`{solver}`, {schedule}"] = (options.samples, case)
    cells = {}
    for title, (count, case) in cases.items():
        given = (records, model, of_model, (name,), (count, BATCH), title, case)
        found = Estimate(*measure(*given)["distance"])
        cells[title] = f"{found}; {common.excess(found, floor(model, count)).value:.3f}"
    return cells


def main(options: argparse.Namespace) -> None:
    """Measure, and write the table."""
    records = Records(Path(options.folder) / "few_steps.jsonl")
    columns = {name: column(name, options, records) for name in (*ZOO, *TRAINED)}
    lines = [common.provenance("python -m studies.few_steps --folder=DIR --write"), ""]
    lines += header(f"sampler, {STEPS} evaluations", *columns)
    titles = next(iter(columns.values()))
    lines += [row(title, *(cells[title] for cells in columns.values())) for title in titles]
    common.publish("sampling.md", {"few": lines}, write=options.write)


if __name__ == "__main__":
    common.run(main, OPTIONS)
