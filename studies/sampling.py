"""Sample quality against network evaluations (NFE) for every sampler and SDE, beside diffusers.

python -m studies.sampling --folder=DIR [--samples=5000] [--write]

Prints the tables of docs/sampling.md and, with --write, puts them into the page and draws
docs/sampling.png. Networks of the digits are trained in DIR; a run that is stopped resumes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import solvers
from benchmarks.records import Record, Records
from benchmarks.tables import header, row
from errors import InputError
from score_sde import Prior
from sde_lib import VESDE, VPSDE, SubVPSDE
from studies import common
from studies.calibration import prior_of
from studies.common import Estimate
from studies.distances import distance, mixture_of_digits, quantiles_of_mixture, sliced_distance

OPTIONS = {"folder": "", "samples": 5000, "write": False}
SDES = {"VE": VESDE(), "VP": VPSDE(), "sub-VP": SubVPSDE()}
CONFIGS = {
    "VE": "ve.digits_ncsnpp_continuous",
    "VP": "vp.digits_ddpmpp_continuous",
    "sub-VP": "subvp.digits_ddpmpp_continuous",
}
BUDGETS = (5, 10, 15, 20, 35, 50)
OWN = "the config's own"  # the sampler of the paper: PC for VE, the predictor alone for VP
MARGIN = 0.1  # of the distance of the config's own sampler
CANDIDATES = ("dpm++_2m", "dpm++_2m_sde", "unipc_2", "deis")
"""Solvers measured on trained networks with 20 NFE on both schedules, and with 10."""
OTHERS = ("ddim", "dpm++_3m", "heun_churn")  # measured with 20 NFE on Karras' levels
CORRECTED = {
    "VE": {"predictor": "reverse_diffusion", "snr": 0.16},
    "VP": {"predictor": "euler_maruyama", "snr": 0.01},
    "sub-VP": {"predictor": "euler_maruyama", "snr": 0.01},
}
Measure = Callable[[str, Mapping[str, Any]], Record]
"""(title, options of `Prior.make_sampler`) -> record with `nfe` and `distance`, an Estimate."""


def measure(
    records: Records,
    prior: Prior,
    distance: Callable[[np.ndarray], Estimate],
    about: tuple[Any, ...],
    sizes: tuple[int, int],
    title: str,
    options: Mapping[str, Any],
) -> Record:
    """Measure samples of a prior, unless it is recorded; `sizes` are their number and a batch."""
    count, batch_size = sizes

    def compute() -> Record:
        sampler = prior.make_sampler(**options)
        found = prior.draw(sampler, count, jax.random.key(0), batch_size=batch_size)
        nfe = float(np.mean(found.nfe))
        return {"about": title, "nfe": nfe, "distance": distance(np.asarray(found.x))}

    return records.cached(common.key([*about, options, count], "studies.sampling"), compute)


def solver(name: str, schedule: str, budget: int) -> dict[str, Any]:
    """Return the options of a few-step solver with the largest NFE within a budget."""
    steps = budget
    if name in ("heun", "heun_churn"):
        steps = (budget + 1) // 2
    elif name == "restart":
        steps = (budget - 3) // 2
    return {"name": name, "schedule": schedule, "steps": steps}


def reference_samplers(sde: str) -> dict[str, dict[str, Any]]:
    """Return the samplers of the paper and the adaptive-step SDE solver, by their name."""
    predictor = {"predictor": CORRECTED[sde]["predictor"], "corrector": "none"}
    found: dict[str, dict[str, Any]] = {
        "PC, 1000 + 1000": {"name": "pc", "steps": 1000, "corrector": "langevin", **CORRECTED[sde]},
        "predictor, 1000": {"name": "pc", "steps": 1000, **predictor},
        "ode": {"name": "ode"},
    }
    for tolerance in (0.05, 0.02, 0.01):
        found[f"adaptive_sde {tolerance}"] = {"name": "adaptive_sde", "tolerance": tolerance}
    return found


def mixture_tables(name: str, measure: Measure) -> tuple[list[str], dict[str, list[Record]]]:
    """Return the tables of one SDE, and the results of each sampler for the picture.

    At 10 and 20 NFE every solver is measured on every schedule, at other budgets on its best one.
    """
    lines = header("solver", "schedule", *(f"{budget} NFE" for budget in BUDGETS))
    others = header("solver", *(f"{s}, {n} NFE" for s in solvers.SCHEDULES for n in (10, 20)))
    curves: dict[str, list[Record]] = {}

    def at(method: str, schedule: str, budget: int) -> Record | None:
        options = solver(method, schedule, budget)
        try:
            return measure(f"{method} {schedule} {budget}", options)
        except InputError:  # Too few steps.
            return None

    for method in solvers.SOLVERS:
        logs, in_full = {}, []
        for schedule in solvers.SCHEDULES:
            two = [found for n in (10, 20) if (found := at(method, schedule, n))]
            logs[schedule] = np.mean([math.log(each["distance"][0]) for each in two])
            in_full += two
        best = min(logs, key=lambda schedule: logs[schedule])
        found = {budget: at(method, best, budget) for budget in BUDGETS}
        lines.append(row(f"`{method}`", best, *(_cell(each, n) for n, each in found.items())))
        curves[method] = [each for each in found.values() if each]
        if method in ("deis", "unipc_3", "dpm++_2m"):
            others.append(row(f"`{method}`", *(f"{each['distance'][0]:.4f}" for each in in_full)))
    lines += ["", *header("sampler", "NFE", "distance")]
    for sampler, options in reference_samplers(name).items():
        one = measure(sampler, options)
        lines.append(row(sampler, f"{one['nfe']:.0f}", _cell(one, 0)))
        curves[sampler] = [one]
    return [*lines, "", "Other schedules:", "", *others], curves


def _cell(found: Record | None, budget: int) -> str:
    """Return the distance, with its NFE if they are below the budget."""
    if not found:
        return ""
    cell = f"{found['distance'][0]:.4f}"
    return cell if found["nfe"] >= budget else f"{cell} ({found['nfe']:.0f})"


def plot(curves: dict[str, dict[str, list[Record]]], exact: Estimate, path: Path) -> None:
    """Plot distance against NFE, one panel for each SDE; the floor is shaded."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(curves), sharey=True), curves.items()):
        for number, (sampler, results) in enumerate(found.items()):
            points = [(each["nfe"], each["distance"][0]) for each in results]
            style = "." if len(points) == 1 else (".--" if number >= 10 else ".-")
            axes.plot(*zip(*points), style, color=f"C{number % 10}", label=sampler, linewidth=1)
        low, high = exact.value - 2 * exact.stderr, exact.value + 2 * exact.stderr
        axes.axhspan(low, high, color="0.85", label="floor")
        axes.set(xscale="log", yscale="log", title=name, xlabel="NFE", ylim=(0.01, 1))
    figure.axes[0].set_ylabel("sliced Wasserstein-2 distance")
    figure.axes[-1].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)


def verdict(result: Estimate, own: Estimate) -> str:
    """Compare a distance with the config's own, given MARGIN and two standard errors."""
    difference, error = result.value - own.value, 2 * math.hypot(result.stderr, own.stderr)
    margin = MARGIN * own.value
    if difference + error <= 0:
        return "better"
    if difference + error <= margin:
        return "as good"
    return "worse" if difference - error > margin else "cannot tell"


def trained_table(measures: dict[str, Measure]) -> list[str]:
    """Return a table of all samplers on all trained networks, with verdicts."""
    settings = [(solver, "karras", 20) for solver in (*CANDIDATES, *OTHERS)]
    settings += [(solver, "log_snr", 20) for solver in CANDIDATES]
    settings += [(solver, "karras", 10) for solver in CANDIDATES]
    own = {name: measure(OWN, {"name": "pc"}) for name, measure in measures.items()}
    distances = {name: Estimate(*found["distance"]) for name, found in own.items()}
    nfe = ", ".join(f"{found['nfe']:.0f}" for found in own.values())
    lines = [*header("sampler", "NFE", *measures), row(OWN, nfe, *map(str, distances.values()))]
    for setting in settings:
        title = " ".join(setting[:2])
        found = [measure(title, solver(*setting)) for measure in measures.values()]
        pairs = zip((Estimate(*each["distance"]) for each in found), distances.values())
        cells = [f"{result}, {verdict(result, best)}" for result, best in pairs]
        lines.append(row(f"`{title}`", f"{found[-1]['nfe']:.0f}", *cells))
    return lines


SCHEDULERS = {  # of diffusers, by our solver: (class, options)
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++_3m_diffusers": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc_2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}


def own_states(prior: Prior, name: str, x: np.ndarray, noise_levels: np.ndarray) -> np.ndarray:
    """Return the states of a solver of ours from x (n, ...) at each of the noise levels."""
    chosen = solvers.SOLVERS[name]
    run = functools.partial(
        *(solvers.few_step, None, prior.score, prior.sde),
        plan=chosen.plan(noise_levels),
        final_level=noise_levels[-1],
        noise_prediction=chosen.noise_prediction,
    )
    return np.asarray(jax.jit(run)(x)[1])


def peer_states(prior: Prior, name: str, x: np.ndarray, noise_levels: np.ndarray) -> np.ndarray:
    """Return the states of a scheduler of diffusers with the same score and noise levels.

    Its states have the scale of VP, alpha^2 + std^2 = 1; those returned are in no other.
    """
    import diffusers
    import torch

    kind, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(use_karras_sigmas=True, **options)
    scheduler.set_timesteps(len(noise_levels) - 1)
    scheduler.sigmas = torch.tensor(noise_levels)
    times = prior.sde.time_at(jnp.asarray(noise_levels))
    scales = np.asarray(prior.sde.alpha(times) * np.hypot(1, noise_levels), np.float32)
    state, states, score = torch.tensor(x / scales[0]), [], jax.jit(prior.score)
    for t, scale, timestep in zip(times, scales, scheduler.timesteps):
        found = score(jnp.asarray(scale * state.numpy()), jnp.full(len(x), t))
        noise = torch.tensor(np.asarray(-prior.sde.std(t) * found))
        state = scheduler.step(noise, timestep, state).prev_sample
        states.append(state.numpy())
    return np.array(states)


def diffusers_table(prior: Prior) -> list[str]:
    """Compare solvers with diffusers' schedulers on the probability flow of a prior.

    Both use the same noise levels and prior samples. Errors are those of the last state.
    """
    x = np.asarray(jax.random.normal(jax.random.key(0), (64, *prior.event_shape)))
    lines = header(
        *("solver", "NFE", "largest difference of states", "error, ours", "error, diffusers")
    )
    for name in SCHEDULERS:
        denoise = name != "deis"  # diffusers' DEIS cannot reach noise level 0.
        levels = {
            n: solvers.noise_levels(prior.sde, "log_snr", n, denoise=denoise)
            for n in (10, 20, 1000)
        }
        truth = own_states(prior, "dpm++_3m", x, levels[1000])[-1]
        for steps in (10, 20):
            own, peer = (f(prior, name, x, levels[steps]) for f in (own_states, peer_states))
            errors = [f"{np.sqrt(np.mean((each[-1] - truth) ** 2)):.2e}" for each in (own, peer)]
            lines.append(row(f"`{name}`", str(steps), f"{np.abs(own - peer).max():.1e}", *errors))
    return lines


def main(options: argparse.Namespace) -> None:
    folder, count, mixture = Path(options.folder), options.samples, mixture_of_digits()
    records, trained, curves = Records(folder / "sampling.jsonl"), {}, {}
    for name in SDES:
        model = common.digits_network(CONFIGS[name], folder)
        about, of_model = (model.config.to_dict(),), functools.partial(distance, model)
        given = records, model, of_model, about, (count, 500)
        trained[name] = functools.partial(measure, *given)
    about = common.provenance("python -m studies.sampling --folder=DIR --write")
    blocks = {"trained": [about, "", *trained_table(trained)]}
    quantiles, draw = quantiles_of_mixture(mixture, count), mixture.draw
    floors = [sliced_distance(quantiles, draw(np.random.default_rng(i), count)) for i in range(20)]
    floor = Estimate(float(np.mean(floors)), float(np.std(floors, ddof=1)))

    def exact_distance(x: np.ndarray) -> Estimate:
        return Estimate(sliced_distance(quantiles, x), 0)

    for name, sde in SDES.items():
        prior = Prior(prior_of(mixture, sde).score, sde, (64,), support=(-1.0, 1.0))
        given = records, prior, exact_distance, ("mixture", name), (count, count)
        lines, curves[name] = mixture_tables(name, functools.partial(measure, *given))
        blocks[name] = [f"The distance of {count} exact samples is {floor}.", "", *lines]
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        blocks["diffusers"] = diffusers_table(prior_of(mixture, VPSDE()))
    common.publish("sampling.md", blocks, write=options.write)
    if options.write:
        plot(curves, floor, common.ROOT / "docs" / "sampling.png")


if __name__ == "__main__":
    common.run(main, OPTIONS)
