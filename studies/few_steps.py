"""Ten evaluations at fitted noise levels and at other ones, and predictor-corrector with 2,000.

python -m studies.few_steps --folder=DIR [--samples=1000] [--pc=0] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page. The networks of VP and
VE are those of zoo/; the others are trained in DIR. A run that is stopped resumes. Levels are
fitted without images, and distances are to held-out ones. `--pc` is the number of samples by
predictor and corrector with 2,000 evaluations, which take 6 minutes of CPU time for 1,000.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
import solvers
from benchmarks.records import Record, Records
from benchmarks.tables import header, row
from score_sde import TrainedModel
from studies import common
from studies.common import Estimate
from studies.distances import distance, floor
from studies.sampling import CONFIGS, CORRECTED

ZOO = {"VP": "digits_vp", "VE": "digits_ve"}
TRAINED = {"sub-VP": CONFIGS["sub-VP"], "EDM": "edm.digits_ddpmpp"}
OPTIONS = {"folder": "", "samples": 1000, "pc": 1000, "write": False}
STEPS, BATCH = 10, 250
PC = "predictor and corrector, 2,000"
CASES = [("dpm++_2m_sde", each) for each in ("log_snr", "karras", "AYS", "fitted")]
CASES += [("dpm++_2m", each) for each in ("log_snr", "karras", "AYS", "fitted")]
CASES += [("unipc_2", "log_snr"), ("unipc_2", "karras")]
"""Solvers and schedules; those of SCHEDULERS on 'karras' are diffusers' schedulers."""
SCHEDULERS = {"dpm++_2m": "DPMSolverMultistepScheduler", "unipc_2": "UniPCMultistepScheduler"}


def network(name: str, folder: Path) -> TrainedModel:
    """Return a network, which is trained if it is not in zoo/."""
    if name in ZOO:
        return common.load(f"zoo/{ZOO[name]}.safetensors")
    return common.digits_network(TRAINED[name], folder)


def noise_levels(model: TrainedModel, solver: str, schedule: str) -> np.ndarray:
    """Return the levels (STEPS + 1,) of a schedule.

    'AYS' are those of Stable Diffusion (arXiv:2404.14507), whose logarithms are scaled to the range
    of the model.
    """
    if schedule == "fitted":
        return np.array(model.fit_schedule(STEPS, sampler=solver).levels)
    if schedule != "AYS":
        return solvers.noise_levels(model.sde, schedule, STEPS)
    from diffusers.schedulers.scheduling_utils import AysSchedules

    published = np.log(AysSchedules["StableDiffusionSigmas"][:STEPS])
    levels = solvers.noise_levels(model.sde, "log_snr", STEPS)
    ends = np.log(levels[[STEPS - 1, 0]])
    levels[:STEPS] = np.exp(np.interp(published, published[[-1, 0]], ends))
    return levels


def peer_states(
    model: TrainedModel, name: str, x: np.ndarray, noise_levels: np.ndarray
) -> np.ndarray:
    """Return the states of a scheduler of diffusers with the same score and noise levels.

    They have the scale of VP, alpha^2 + std^2 = 1, whatever the SDE of the model.
    """
    import diffusers
    import torch

    kind = getattr(diffusers, SCHEDULERS[name])
    scheduler = kind(use_karras_sigmas=True, solver_order=2)
    scheduler.set_timesteps(len(noise_levels) - 1)
    scheduler.sigmas = torch.tensor(noise_levels)
    times = model.sde.time_at(jnp.asarray(noise_levels))
    scales = np.asarray(model.sde.alpha(times) * np.hypot(1, noise_levels), np.float32)
    state, states, score = torch.tensor(x / scales[0]), [], jax.jit(model.score)
    for t, scale, timestep in zip(times, scales, scheduler.timesteps):
        found = score(jnp.asarray(scale * state.numpy()), jnp.full(len(x), t))
        noise = torch.tensor(np.asarray(-model.sde.std(t) * found))
        state = scheduler.step(noise, timestep, state).prev_sample
        states.append(state.numpy())
    return np.array(states)


def draw(model: TrainedModel, name: str, solver: str, schedule: str, count: int) -> Array:
    """Return samples (count, H, W, C) of a solver, or of PC."""
    key = jax.random.key(0)
    if solver == PC:
        chain = CORRECTED.get(name, CORRECTED["VE"])
        sampler = model.make_sampler("pc", 1000, corrector="langevin", **chain)
    else:
        levels = noise_levels(model, solver, schedule)
        if schedule == "karras" and solver in SCHEDULERS:
            keys, shape = sampling.image_keys(key, np.arange(count)), (count, *model.event_shape)
            x = np.asarray(sampling.prior_sample(keys, model.sde, shape))
            return model.units.to_data(peer_states(model, solver, x, levels)[-1])
        sampler = model.make_sampler(solver, schedule=levels.tolist())
    return model.draw(sampler, count, key, batch_size=BATCH).x


def column(name: str, options: argparse.Namespace, records: Records) -> dict[str, str]:
    """Return distances and what their squares exceed that of the floor, by the titles of rows."""
    model, cells = network(name, Path(options.folder)), {}
    cases = [(*each, options.samples) for each in CASES]
    cases += [(PC, "", options.pc)] if options.pc else []
    for solver, schedule, count in cases:
        title = f"`{solver}`, {schedule}" if schedule else PC

        def compute(case: tuple[str, str, int] = (solver, schedule, count)) -> Record:
            return {"about": [name, *case], "distance": distance(model, draw(model, name, *case))}

        key = common.key([name, solver, schedule, count], "studies.sampling")
        found = Estimate(*records.cached(key, compute)["distance"])
        excess = common.excess(found, floor(model, count))
        cells[title] = f"{found.value:.4f}; {excess.brief()}"
    counts = sorted({count for *_, count in cases})
    return cells | {f"{count} training digits": floor(model, count).brief() for count in counts}


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    """Measure, and return the table."""
    records = Records(Path(options.folder) / "few_steps.jsonl")
    columns = {name: column(name, options, records) for name in ZOO | TRAINED}
    lines = header(f"sampler, {STEPS} evaluations", *columns)
    titles = next(iter(columns.values()))
    lines += [row(title, *(cells[title] for cells in columns.values())) for title in titles]
    return {"few": lines}


if __name__ == "__main__":
    common.run(main, OPTIONS, "sampling.md")
