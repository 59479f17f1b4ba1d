"""Sample quality against network evaluations (NFE) for every sampler and SDE.

python -m studies.sampling --folder=DIR [--samples=5000] [--write]

Prints the tables of docs/sampling.md and, with --write, puts them into the page and draws
docs/sampling.png. Networks of the digits are trained in DIR; a run that is stopped resumes.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import solvers
from benchmarks.records import Record, Records
from benchmarks.tables import header, row
from errors import InputError
from score_sde import Prior
from studies import common
from studies.calibration import prior_of
from studies.common import AS_GOOD, SDES, Estimate
from studies.distances import distance, mixture_of_digits, quantiles_of_mixture, sliced_distance

OPTIONS = {"folder": "", "samples": 5000, "write": False}
CONFIGS = {
    "VE": "ve.digits_ncsnpp_continuous",
    "VP": "vp.digits_ddpmpp_continuous",
    "sub-VP": "subvp.digits_ddpmpp_continuous",
}
BUDGETS = (5, 10, 15, 20, 35, 50)
OWN = "the config's own"  # the sampler of the paper: PC for VE, the predictor alone for VP
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
    twice = (budget + 1) // 2
    steps = {"heun": twice, "heun_churn": twice, "restart": twice - 2}
    return {"name": name, "schedule": schedule, "steps": steps.get(name, budget)}


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
    curves: dict[str, list[Record]] = {}

    def at(method: str, schedule: str, budget: int) -> Record | None:
        options = solver(method, schedule, budget)
        try:
            return measure(f"{method} {schedule} {budget}", options)
        except InputError:  # Too few steps.
            return None

    for method in solvers.SOLVERS:
        logs = {}
        for schedule in solvers.SCHEDULES:
            two = [found for n in (10, 20) if (found := at(method, schedule, n))]
            logs[schedule] = np.mean([math.log(each["distance"][0]) for each in two])
        best = min(logs, key=lambda schedule: logs[schedule])
        found = {budget: at(method, best, budget) for budget in BUDGETS}
        lines.append(row(f"`{method}`", best, *(_cell(each, n) for n, each in found.items())))
        curves[method] = [each for each in found.values() if each]
    lines += ["", *header("sampler", "NFE", "distance")]
    for sampler, options in reference_samplers(name).items():
        one = measure(sampler, options)
        lines.append(row(sampler, f"{one['nfe']:.0f}", _cell(one, 0)))
        curves[sampler] = [one]
    return lines, curves


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


def trained_table(measures: dict[str, Measure]) -> list[str]:
    """Return a table of all samplers on all trained networks.

    Cells have distances, the config's own relative to them above the floor, and whether this is
    larger than AS_GOOD, which is only suggestive for one network.
    """
    settings = [(solver, "karras", 20) for solver in (*CANDIDATES, *OTHERS)]
    settings += [(solver, "log_snr", 20) for solver in CANDIDATES]
    settings += [(solver, "karras", 10) for solver in CANDIDATES]
    own = {name: measure(OWN, {"name": "pc"}) for name, measure in measures.items()}
    known = [Estimate(*found["distance"]) for found in own.values()]
    nfe = ", ".join(f"{found['nfe']:.0f}" for found in own.values())
    lines = header("sampler", "NFE", *measures)
    lines.append(row(OWN, nfe, *(each.brief() for each in known)))
    for setting in settings:
        title = " ".join(setting[:2])
        found = [measure(title, solver(*setting)) for measure in measures.values()]
        cells = []
        for one, best in zip((Estimate(*each["distance"]) for each in found), known):
            ratio, verdict, _ = common.judge_ratio([best], [one], AS_GOOD)
            cells.append(f"{one.brief()}; {ratio} ({verdict})")
        lines.append(row(f"`{title}`", f"{found[-1]['nfe']:.0f}", *cells))
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    folder, count, mixture = Path(options.folder), options.samples, mixture_of_digits()
    records, trained, curves = Records(folder / "sampling.jsonl"), {}, {}
    for name in SDES:
        model = common.digits_network(CONFIGS[name], folder)
        about, of_model = (model.config.to_dict(),), functools.partial(distance, model)
        given = records, model, of_model, about, (count, 500)
        trained[name] = functools.partial(measure, *given)
    blocks = {"trained": trained_table(trained)}
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
    if options.write:
        plot(curves, floor, common.ROOT / "docs" / "sampling.png")
    return blocks


if __name__ == "__main__":
    common.run(main, OPTIONS, "sampling.md")
