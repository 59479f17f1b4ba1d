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
BEST, BEST_SCHEDULE = "deis", "karras"  # the sampler that the page recommends


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


def comparison_with_pc(results: list[Result]) -> list[str]:
    """Return cells that compare BEST at 20 and 10 NFE with PC, and whether it reaches the goals."""
    floors = [r.spread for r in results if r.sampler == "floor"]
    default_spread = floors[0] if floors else 0.0
    pc = pick(results, PC)
    at_20, at_10 = (pick(results, f"{BEST} {BEST_SCHEDULE}", nfe) for nfe in (20, 10))
    error = np.hypot(at_20.spread or default_spread, pc.spread or default_spread)
    difference = at_20.distance - pc.distance
    ratio = at_10.distance / pc.distance
    return [
        f"{pc.distance:.4f}",
        f"{at_20.distance:.4f}",
        f"{difference:+.4f} ({2 * error:.4f})",
        "yes" if difference <= 2 * error else "no",
        f"{at_10.distance:.4f}",
        f"{ratio:.2f}",
        "yes" if at_10.distance <= 1.5 * pc.distance else "no",
    ]


def comparison_table(parts: dict[str, list]) -> list[str]:
    """Return a table of `comparison_with_pc` for the SDEs and the digits."""
    lines = header(
        "law",
        "PC, 2,000 NFE",
        "20 NFE",
        "apart (2 errors)",
        "as good",
        "10 NFE",
        "ratio",
        "within 1.5",
    )
    for name, results in parts.items():
        if name != "peers":
            lines.append(row(results[0].sde, *comparison_with_pc(results)))
    return lines


def digits_table(results: list[Result]) -> list[str]:
    """Return a table of the samples of the digits model."""
    lines = header("samples", "NFE", "distance", "confidence", "classes off")
    for r in results:
        nfe = f"{r.nfe:.0f}" if r.nfe else ""
        lines.append(row(r.sampler, nfe, f"{r.distance:.4f} +- {r.spread:.4f}", *r.notes))
    return lines


# --- page ---


def page(parts: dict[str, list], facts: dict[str, Any]) -> str:
    """Return docs/sampling.md.

    `parts` are the results of `sampling_quality`, `facts` its command and numbers of samples.
    """
    floor = parts["vesde"][0]
    facts = facts | {
        "machine": machine(),
        "floor": f"{floor.distance:.4f} +- {floor.spread:.4f}",
        "comparison": "\n".join(comparison_table(parts)),
    }
    lines = [TEXT.format(**facts)]
    for kind, name in NAMES.items():
        lines += [f"### {name}", "", *mixture_tables(parts[kind]), "", "Other schedules:", ""]
        lines += [*schedule_table(parts[kind]), ""]
    if "digits" in parts:
        lines += [DIGITS.format(**facts), *digits_table(parts["digits"]), ""]
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
        width = 2 if name == BEST else 1
        axes.plot(*zip(*points), ".-", color=f"C{number}", label=name, linewidth=width)
    points = [(r.nfe, r.distance) for r in results if r.sampler.startswith("adaptive_sde")]
    axes.plot(*zip(*points), "kx", label="adaptive_sde")
    axes.plot(pick(results, "ode").nfe, pick(results, "ode").distance, "k*", label="ode")
    axes.axhline(pick(results, PC).distance, color="k", linestyle="--", label="PC, 2,000 NFE")
    floor = results[0]
    low, high = floor.distance - 2 * floor.spread, floor.distance + 2 * floor.spread
    axes.axhspan(low, high, color="0.85", label="floor")


TEXT = """# Choosing a sampler

Use DEIS on Karras' noise levels with 20 evaluations of the network (NFE) per image, or 10 if time
is short:

```
--config.sampling.method=solver --config.sampling.solver=deis \\
--config.sampling.schedule=karras --config.sampling.num_steps=20
```

Goal: match predictor and corrector at 2,000 NFE (the paper's PC, 1,000 steps of each) with 20, that
is, a distance at most two standard errors of the difference larger; and stay within 1.5 times its
distance with 10. Smaller distances are better; the sections below define them.

{comparison}

The errors are those of independent samples. The samplers share their noise, so that the true errors
are smaller.

- With an exact score and 15 NFE or more, the multistep solvers `deis`, `unipc_*`, `dpm++_2m` and
  `dpm++_3m`, each on its best schedule, outperform the solvers with two evaluations per step
  (`heun`, `heun_churn` and `restart`: 2 num_steps - 1 NFE, and 4 more for `restart` as configured)
  and the stochastic ones.
- Noise during sampling can correct some of a network's errors: for the digits, compare PC and
  `dpm++_2m_sde` with `deis`, which more NFE do not improve.
- With few NFE the schedule matters: see the tables.
- Noise costs accuracy at few NFE. With an exact score and 20 or 40 NFE, no `churn` is best, or as
  good as the best, on each SDE and schedule (of 0, 0.5, 1, 2, 4 and 10); the default is 1.
  `restart` once, from noise level 1 to 0.3 in two steps, is as good as `heun` at 20 NFE in the
  geometric mean over the SDEs, but not for VP; lower levels and repetitions are worse.
- `--config.sampling.method=pc` is the paper's PC, with `predictor` and `corrector`; `method=ode` is
  the probability flow with adaptive steps; `solver=adaptive_sde` chooses its steps by
  `--config.sampling.tolerance`. Latent codes need a solver without noise, or `method=ode`.

Written on {machine} by

```
{command}
```

![Distance against NFE](sampling.png)

## A distribution with known score

The distribution consists of ten Gaussians in images of 8x8x1 in [-1, 1], with the pixel means and
variances of the ten classes of the digits and the exact score. The distance is Wasserstein-2
between {n} samples and the distribution itself, along 64 pixels and 64 random directions, as root
mean square. The distance of exact samples is {floor} (mean and standard deviation over 20 draws,
the "floor"); differences of twice that deviation are not significant. All samplers start from the
same noise. The row of a solver shows the schedule that is best at 10 and 20 NFE; NFE are stated in
parentheses where they are below the column's. `churn` and `restart` have the values of the default
config. PC has `reverse_diffusion` and `langevin` with snr 0.16 for VE, `euler_maruyama` and snr
0.01 for VP and sub-VP.
"""

DIGITS = """## A trained network: the digits

Samplers of the model of `configs/vp/digits_ddpmpp_continuous.py`, {digits} samples each, as grey
levels; the solvers use Karras' levels. The distance is that to the held-out digits, defined as
above and weighted so that their classes have the frequencies of training; +- is the standard
deviation over 40 resamplings of the samples. As many training digits are the floor. A logistic
regression fitted to the training digits classifies the samples: `confidence` is the mean
probability of the predicted class, `classes off` the total variation distance between the class
frequencies of samples and training digits.
"""

DIFFUSERS = """## diffusers' schedulers

The table compares the probability flow of the VP SDE for the distribution above, from the same
noise, on the same noise levels (`log_snr`) and with the same score, for 64 images. It states the
largest difference of any state, and root mean square errors of the samples against 1,000 steps of
`dpm++_3m`. diffusers' DEIS cannot reach noise level 0, so that `deis` is compared without the last,
denoising step. The remaining differences are due to orders: we lower the order only in the last
step, to noise-free data; diffusers also lowers it in the second-last step of `unipc_3` and, below
15 steps, of `dpm++_3m` and `deis`. The rest is float32 rounding.
"""

LIMITATIONS = """## Limitations

A mixture of Gaussians with its exact score, and one small network for images of 8x8: neither has
the fine detail of photographs, and FID was not measured. Only the VP SDE was measured with a
trained network. The default was chosen on these measurements, with one seed; samplers within the
given errors are not ranked.
"""
