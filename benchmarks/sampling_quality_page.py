"""The page of `benchmarks.sampling_quality`, docs/sampling.md, and its picture."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

import solvers
from benchmarks.markdown import header, machine, row

NAMES = {"vesde": "VE", "vpsde": "VP", "subvpsde": "sub-VP"}
BUDGETS = (5, 10, 15, 20, 35, 50)
PC = "PC, 1000 + 1000"
OWN = "the config's own"  # the sampler of the paper: PC for VE, the predictor alone for VP
MARGIN = 0.1  # of the distance of the config's own sampler


class Result(NamedTuple):
    """The samples of one sampler.

    Attributes:
      sde: the SDE's name, or "digits".
      sampler: the sampler's name, and its schedule if it is a few-step solver.
      nfe: score evaluations per image.
      distance: distance from the distribution to be sampled.
      spread: Monte-Carlo standard deviation of the distance, 0 if not estimated.
      notes: further cells of the digits' table.
    """

    sde: str
    sampler: str
    nfe: float
    distance: float
    spread: float = 0.0
    notes: tuple[str, ...] = ()


# --- selecting results ---


def pick(results: list[Result], name: str, budget: float = float("inf")) -> Result:
    """Return the result of this sampler with the most NFE within the budget."""
    candidates = [r for r in results if r.sampler == name and r.nfe <= budget]
    return max(candidates, key=lambda r: r.nfe)


def best_schedule(results: list[Result], name: str) -> str:
    """Return "solver schedule" for the schedule on which every budget was measured."""
    counts = Counter(r.sampler for r in results if r.sampler.split()[0] == name)
    return counts.most_common(1)[0][0]


# --- tables ---


def mixture_tables(results: list[Result]) -> list[str]:
    """Return tables of solvers, each on its best schedule, by budget, and of other samplers."""
    lines = header("solver", "schedule", *(f"{budget} NFE" for budget in BUDGETS))
    for name in solvers.SOLVERS:
        sampler = best_schedule(results, name)
        own_results = [r for r in results if r.sampler == sampler]
        cells = []
        for low, budget in zip((0, *BUDGETS), BUDGETS):
            cells.append(_budget_cell([r for r in own_results if low < r.nfe <= budget], budget))
        lines.append(row(f"`{name}`", sampler.split()[1], *cells))
    lines += ["", *header("sampler", "NFE", "distance")]
    for r in results:
        if r.sampler.split()[0] not in solvers.SOLVERS and r.sampler != "floor":
            lines.append(row(r.sampler, f"{r.nfe:.0f}", f"{r.distance:.4f}"))
    return lines


def _budget_cell(results: list[Result], budget: int) -> str:
    """Return the distance of the first result, with its NFE if they are below the budget."""
    if not results:
        return ""
    cell = f"{results[0].distance:.4f}"
    if results[0].nfe < budget:
        cell += f" ({results[0].nfe:.0f})"
    return cell


def schedule_table(results: list[Result]) -> list[str]:
    """Return a table of distances at 10 and 20 NFE on every schedule."""
    columns = [(schedule, nfe) for schedule in solvers.SCHEDULES for nfe in (10, 20)]
    lines = header("solver", *(f"{schedule}, {nfe} NFE" for schedule, nfe in columns))
    for name in ("deis", "unipc_3", "dpm++_2m"):
        found = [pick(results, f"{name} {schedule}", nfe) for schedule, nfe in columns]
        lines.append(row(f"`{name}`", *(f"{r.distance:.4f}" for r in found)))
    return lines


def trained(parts: dict[str, list]) -> dict[str, list[Result]]:
    """Return the results of trained networks, by the name of the SDE."""
    return {NAMES[kind]: parts[f"trained {kind}"] for kind in NAMES if f"trained {kind}" in parts}


def verdict(result: Result, own: Result) -> str:
    """Compare a sampler with the config's own, given MARGIN and two standard errors."""
    difference = result.distance - own.distance
    error = 2 * float(np.hypot(result.spread, own.spread))
    margin = MARGIN * own.distance
    if difference + error <= 0:
        return "better"
    if difference + error <= margin:
        return "as good"
    return "worse" if difference - error > margin else "cannot tell"


def solvers_at(networks: dict[str, list[Result]], budget: int) -> list[str]:
    """Return the names, "solver schedule", that were measured with about this NFE on all SDEs."""
    found = []
    for r in next(iter(networks.values())):
        if r.sampler != OWN and budget - 3 <= r.nfe <= budget and r.sampler not in found:
            found.append(r.sampler)
    return found


def recommended(networks: dict[str, list[Result]]) -> str:
    """Return the "solver schedule" with 20 NFE whose worst distance, relative to OWN, is least."""

    def worst(name: str) -> float:
        ratios = [pick(r, name, 20).distance / pick(r, OWN).distance for r in networks.values()]
        return max(ratios)

    return min(solvers_at(networks, 20), key=worst)


def trained_table(networks: dict[str, list[Result]]) -> list[str]:
    """Return a table of all samplers on all trained networks, with verdicts."""
    lines = header("sampler", "NFE", *networks)
    owns = {name: pick(results, OWN) for name, results in networks.items()}
    cells = [f"{own.distance:.4f} +- {own.spread:.4f}" for own in owns.values()]
    lines.append(row(OWN, ", ".join(f"{own.nfe:.0f}" for own in owns.values()), *cells))
    for budget in (20, 10):
        for sampler in solvers_at(networks, budget):
            found = {name: pick(results, sampler, budget) for name, results in networks.items()}
            cells = [
                f"{r.distance:.4f} +- {r.spread:.4f}, {verdict(r, owns[name])}"
                for name, r in found.items()
            ]
            nfe = f"{next(iter(found.values())).nfe:.0f}"
            lines.append(row(f"`{sampler}`", nfe, *cells))
    return lines


# --- page ---


def page(parts: dict[str, list], facts: dict[str, Any]) -> str:
    """Return docs/sampling.md.

    `parts` are the results of `sampling_quality`, `facts` its command and numbers of samples.
    """
    floor, networks = parts["vesde"][0], trained(parts)
    solver, schedule = recommended(networks).split()
    facts = facts | {
        "machine": machine(),
        "floor": f"{floor.distance:.4f} +- {floor.spread:.4f}",
        "solver": solver,
        "schedule": schedule,
        "margin": f"{MARGIN:.0%}",
        "comparison": "\n".join(trained_table(networks)),
    }
    lines = [TEXT.format(**facts)]
    for kind, name in NAMES.items():
        lines += [f"### {name}", "", *mixture_tables(parts[kind]), "", "Other schedules:", ""]
        lines += [*schedule_table(parts[kind]), ""]
    if "peers" in parts:
        lines += [DIFFUSERS, *parts["peers"], ""]
    return "\n".join([*lines, LIMITATIONS])


def plot(parts: dict[str, list], path: str) -> None:
    """Plot distance against NFE, one panel for each SDE."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 3, sharey=True), NAMES):
        _plot_results(axes, parts[kind])
        axes.set(xscale="log", yscale="log", title=NAMES[kind], xlabel="NFE", ylim=(0.01, 1))
    figure.axes[0].set_ylabel("sliced Wasserstein-2 distance")
    figure.axes[-1].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)


def _plot_results(axes: Any, results: list[Result]) -> None:
    """Plot the samplers of one SDE; lines mark PC and the distance of exact samples."""
    for number, name in enumerate(solvers.SOLVERS):
        sampler = best_schedule(results, name)
        points = sorted((r.nfe, r.distance) for r in results if r.sampler == sampler)
        style = "--" if number >= 10 else "-"
        axes.plot(*zip(*points), f".{style}", color=f"C{number % 10}", label=name, linewidth=1)
    points = [(r.nfe, r.distance) for r in results if r.sampler.startswith("adaptive_sde")]
    axes.plot(*zip(*points), "kx", label="adaptive_sde")
    axes.plot(pick(results, "ode").nfe, pick(results, "ode").distance, "k*", label="ode")
    axes.axhline(pick(results, PC).distance, color="k", linestyle="--", label="PC, 2,000 NFE")
    floor = results[0]
    low, high = floor.distance - 2 * floor.spread, floor.distance + 2 * floor.spread
    axes.axhspan(low, high, color="0.85", label="floor")


TEXT = """# Choosing a sampler

To draw an image with 20 evaluations of the network (NFE), add

```
--config.sampling.method=solver
```

The solver is then `{solver}` on the schedule `{schedule}` with 20 steps, unless a config says
otherwise (`sampling.solver`, `sampling.schedule`, `sampling.num_steps`). We chose this default by
the worst case on the three networks below. For each few-step solver with 20 NFE we divide its
distance from the data by that of the sampler that the paper has for such a network. The largest of
the three ratios is smaller for this solver than for any other. On other small networks, of
Fashion-MNIST and emoji, its distance is 0.6 to 1.3 times that of predictor and corrector with 2,000
evaluations, and 2.0 times for emoji with VE ([claims](claims.md), claim 9).

## Trained networks

Samplers of the three networks of `configs/*/digits_*_continuous.py`, {digits} samples each. The
config's own sampler is the one of the paper: predictor and corrector for VE, the predictor alone
for VP and sub-VP, 250 steps. Smaller distances are better. The distance is Wasserstein-2 to the
held-out digits, along 64 pixels and 64 random directions, as root mean square, with the held-out
classes weighted as in training; +- is the standard deviation over 40 resamplings of the samples.

The margin was fixed before the measurement: {margin} of the distance of the config's own sampler. A
solver is "as good" if its distance, plus two standard errors of the difference, is within the
margin, "better" if it is below the config's own, "worse" if it is beyond the margin by two standard
errors; otherwise we "cannot tell". The errors are those of independent samples. The samplers share
their initial noise, so that the true errors are smaller.

{comparison}

## Other samplers

- `--config.sampling.method=pc` is the paper's predictor-corrector sampler, with `predictor` and
  `corrector`; `method=ode` is the probability flow with adaptive steps; `solver=adaptive_sde`
  chooses its steps by `--config.sampling.tolerance`. Latent codes need a solver without noise; with
  any other `method` they use the adaptive flow.
- `pc` for VP and sub-VP has the official steps, which fit the time grid for `model.num_scales` =
  1,000. A pixel that is the same in all images gets noise of standard deviation 0.07 (VP) or 0.01
  (sub-VP) with 250 steps, 0.015 or 0.001 with 500, and at most 0.0013 with 1,000, of a range of 2
  (reverse diffusion with the exact score). Few-step solvers add none.
- `heun`, `heun_churn` and `restart` evaluate the network twice in a step: 2 num_steps - 1 NFE, and
  4 more for `restart` as configured.
- The best schedule depends on the solver and on the NFE; the tables have both.
- An exact score (below) and a trained network rank the solvers differently: noise during sampling
  costs accuracy with an exact score, and corrects some of a network's errors.

Written on {machine} by

```
{command}
```

The workdirs were trained with the configs of the digits and `--noconfig.model.ema_ramp`.

![Distance against NFE](sampling.png)

## A distribution with known score

The distribution consists of ten Gaussians in images of 8x8x1 in [-1, 1], with the pixel means and
variances of the ten classes of the digits and the exact score. The distance is that between {n}
samples and the distribution itself. The distance of exact samples is {floor} (mean and standard
deviation over 20 draws, the "floor"); differences of twice that deviation are not significant. All
samplers start from the same noise. The row of a solver shows the schedule that is best at 10 and
20 NFE; NFE are stated in parentheses where they are below the column's. `churn` and `restart` have
the values of the default config. PC has `reverse_diffusion` and `langevin` with snr 0.16 for VE,
`euler_maruyama` and snr 0.01 for VP and sub-VP.
"""

DIFFUSERS = """## diffusers' schedulers

The table compares the probability flow of the VP SDE for the distribution above, from the same
noise, on the same noise levels (`log_snr`) and with the same score, for 64 images. It states the
largest difference of any state, and root mean square errors of the samples against 1,000 steps of
`dpm++_3m`. The third-order solver of diffusers is our `dpm++_3m_diffusers`. Its DEIS cannot reach
noise level 0, so `deis` is compared without the last, denoising step. The remaining differences are
due to orders: we lower the order only in the last step, to noise-free data; diffusers also lowers
it in the second-last step of `unipc_3` and, below 15 steps, of `dpm++_3m_diffusers` and `deis`. The
rest is float32 rounding.
"""

LIMITATIONS = """## Limitations

A mixture of Gaussians with its exact score, and three small networks for images of 8x8: neither has
the fine detail of photographs, and FID was not measured. Each network was trained once, and all
samplers were run with one seed; samplers within the given errors are not ranked.
"""
