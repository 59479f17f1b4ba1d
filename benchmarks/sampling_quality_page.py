"""The page of benchmarks.sampling_quality: docs/sampling.md and its picture, from what was measured."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

import solvers
from benchmarks.markdown import header, machine, row

NAMES = {"vesde": "VE", "vpsde": "VP", "subvpsde": "sub-VP"}
BUDGETS = (5, 10, 15, 20, 35, 50)
PC = "PC, 1000 + 1000"
BEST, BEST_SCHEDULE = "deis", "karras"  # What the verdict is about.


class Result(NamedTuple):
    """One sampler measured: `distance` from the law it should sample, `spread` its Monte-Carlo error if estimated."""

    sde: str
    sampler: str
    nfe: float
    distance: float
    spread: float = 0.0
    notes: tuple[str, ...] = ()


def pick(results: list[Result], name: str, budget: int = 0) -> Result:
    """The result of this sampler with most NFE within the budget, if there is one."""
    return max(
        (r for r in results if r.sampler == name and (not budget or r.nfe <= budget)),
        key=lambda r: r.nfe,
    )


def best_schedule(results: list[Result], name: str) -> str:
    """`name schedule`, the one measured at every budget."""
    counts = Counter(r.sampler for r in results if r.sampler.split()[0] == name)
    return counts.most_common(1)[0][0]


def mixture_table(results: list[Result]) -> list[str]:
    """A row for each solver, on its best schedule; a column for each budget."""
    lines = header("solver", "schedule", *(f"{budget} NFE" for budget in BUDGETS))
    for name in solvers.SOLVERS:
        full, cells = best_schedule(results, name), []
        for low, budget in zip((0, *BUDGETS), BUDGETS):
            found = [r for r in results if r.sampler == full and low < r.nfe <= budget]
            cells.append(
                f"{found[0].distance:.4f}"
                + (f" ({found[0].nfe:.0f})" if found[0].nfe < budget else "")
                if found
                else ""
            )
        lines.append(row(f"`{name}`", full.split()[1], *cells))
    others = [
        r for r in results if r.sampler.split()[0] not in solvers.SOLVERS and r.sampler != "floor"
    ]
    lines += ["", *header("sampler", "NFE", "distance")]
    return lines + [row(r.sampler, f"{r.nfe:.0f}", f"{r.distance:.4f}") for r in others]


def schedule_table(results: list[Result]) -> list[str]:
    """Distances at 10 and 20 NFE on every schedule."""
    lines = header(
        "solver", *(f"{schedule}, {n} NFE" for schedule in solvers.SCHEDULES for n in (10, 20))
    )
    for name in ("deis", "unipc_3", "dpm++_2m"):
        cells = [
            pick(results, f"{name} {s}", n).distance for s in solvers.SCHEDULES for n in (10, 20)
        ]
        lines.append(row(f"`{name}`", *(f"{cell:.4f}" for cell in cells)))
    return lines


def verdict(results: list[Result]) -> list[str]:
    """Cells: PC with 2,000 NFE, BEST at 20 and 10 NFE, and whether that is what was to be reached."""
    pc, error = pick(results, PC), next((r.spread for r in results if r.sampler == "floor"), 0.0)
    few = [pick(results, f"{BEST} {BEST_SCHEDULE}", n) for n in (20, 10)]
    spread = [np.hypot(r.spread or error, pc.spread or error) for r in few]
    same = "yes" if few[0].distance - pc.distance <= 2 * spread[0] else "no"
    near = "yes" if few[1].distance <= 1.5 * pc.distance else "no"
    ratio = f"{few[1].distance / pc.distance:.2f}"
    apart = f"{few[0].distance - pc.distance:+.4f} ({2 * spread[0]:.4f})"
    return [
        f"{pc.distance:.4f}",
        f"{few[0].distance:.4f}",
        apart,
        same,
        f"{few[1].distance:.4f}",
        ratio,
        near,
    ]


def page(parts: dict[str, list], facts: dict[str, Any]) -> str:
    """docs/sampling.md; `facts` fill the gaps of its text."""
    head = (
        "law",
        "PC, 2,000 NFE",
        "20 NFE",
        "apart (2 errors)",
        "as good",
        "10 NFE",
        "ratio",
        "within 1.5",
    )
    verdicts = header(*head) + [
        row(p[0].sde, *verdict(p)) for name, p in parts.items() if name != "peers"
    ]
    facts = facts | {"machine": machine()}
    floor = parts["vesde"][0]
    facts |= {
        "floor": f"{floor.distance:.4f} +- {floor.spread:.4f}",
        "verdicts": "\n".join(verdicts),
    }
    lines = [TEXT.format(**facts)]
    for kind, name in NAMES.items():
        lines += [f"### {name}", "", *mixture_table(parts[kind]), "", "Other schedules:", ""]
        lines += [*schedule_table(parts[kind]), ""]
    if "digits" in parts:
        lines += [
            DIGITS.format(**facts),
            *header("samples", "NFE", "distance", "confidence", "classes off"),
        ]
        cells = lambda r: (
            f"{r.nfe:.0f}" if r.nfe else "",
            f"{r.distance:.4f} +- {r.spread:.4f}",
            *r.notes,
        )
        lines += [*(row(r.sampler, *cells(r)) for r in parts["digits"]), ""]
    if "peers" in parts:
        lines += [DIFFUSERS, *parts["peers"], ""]
    return "\n".join([*lines, LIMITS])


def draw(parts: dict[str, list], path: str) -> None:
    """Distance against NFE, a panel for each SDE; the floor, and PC with 2,000 NFE, as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 3, sharey=True), NAMES):
        results = parts[kind]
        for number, name in enumerate(solvers.SOLVERS):
            full = best_schedule(results, name)
            points = sorted((r.nfe, r.distance) for r in results if r.sampler == full)
            axes.plot(
                *zip(*points),
                ".-",
                color=f"C{number}",
                label=name,
                linewidth=2 if name == BEST else 1,
            )
        points = [(r.nfe, r.distance) for r in results if r.sampler.startswith("adaptive_sde")]
        axes.plot(*zip(*points), "kx", label="adaptive_sde")
        axes.plot(pick(results, "ode").nfe, pick(results, "ode").distance, "k*", label="ode")
        axes.axhline(pick(results, PC).distance, color="k", linestyle="--", label="PC, 2,000 NFE")
        floor = results[0]
        axes.axhspan(
            floor.distance - 2 * floor.spread,
            floor.distance + 2 * floor.spread,
            color="0.85",
            label="floor",
        )
        axes.set(xscale="log", yscale="log", title=NAMES[kind], xlabel="NFE", ylim=(0.01, 1))
    figure.axes[0].set_ylabel("sliced Wasserstein-2 distance")
    figure.axes[-1].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)


TEXT = """# Which sampler should I use?

DEIS on Karras' noise levels, 20 evaluations of the network (NFE) an image; 10 if time is short:

```
--config.sampling.method=solver --config.sampling.solver=deis \\
--config.sampling.schedule=karras --config.sampling.num_steps=20
```

The aim was: with 20 NFE as good as predictor and corrector with 2,000 (the paper's PC, 1,000 steps of each), that is,
no more than two standard errors of the difference behind; with 10, within 1.5 times of its distance. Distances, less
being better, by the measures below:

{verdicts}

The errors are those of independent samples. The samplers share their noise, so that the true ones are rather smaller.

- With an exact score, from 15 NFE on, the multistep solvers `deis`, `unipc_*`, `dpm++_2m` and `dpm++_3m`, each on its
  best schedule, come before those that evaluate twice a step (`heun`, `heun_churn` and `restart`: 2 num_steps - 1 NFE,
  for `restart` as configured 4 more) and before noisy ones.
- A network's errors are another matter, as noise along the way may mend some of them: for the digits, compare PC and
  `dpm++_2m_sde` with `deis`, which more NFE do not improve.
- Few NFE make the schedule matter: see the tables.
- Noise costs at few NFE. With an exact score and 20 or 40 NFE, no `churn` is best, or ties, on each SDE and schedule
  (of 0, 0.5, 1, 2, 4 and 10); the default of 1 is a little of it. `restart` once, from noise level 1 to 0.3 in two
  steps, is as good as `heun` at 20 NFE, as the geometric mean over the SDEs goes, though not for VP; lower levels and
  repetitions are worse.
- `--config.sampling.method=pc` is the paper's PC, with `predictor` and `corrector`; `method=ode` is the probability
  flow by adaptive steps; `solver=adaptive_sde` chooses its steps by `--config.sampling.tolerance`. Latent codes need a
  solver without noise, or `method=ode`.

Written on {machine} by

```
{command}
```

![Distance against NFE](sampling.png)

## A law whose score is known

Ten Gaussians in images of 8x8x1 in [-1, 1], with pixel means and variances of the ten classes of the digits and the
exact score. The distance is Wasserstein-2 between {n} samples and the law itself, along 64 pixels and 64 random
directions, as root mean square. The law's own samples are {floor} from it (mean and standard deviation over 20
draws): differences of twice that deviation mean nothing. All samplers start from the same noise. The row of a solver
has the schedule that is best at 10 and 20 NFE; NFE in parentheses where they are below the column's. `churn` and
`restart` have the values of the default config. PC has `reverse_diffusion` and `langevin` with snr 0.16 for VE,
`euler_maruyama` and snr 0.01 for VP and sub-VP.
"""

DIGITS = """## A trained network: the digits

The model of `configs/vp/digits_ddpmpp_continuous.py`, {digits} samples of each sampler, as grey levels; the solvers on
Karras' levels. The distance is as above, to the held-out digits, which count by weights that give their classes the
frequencies of training; +- is the standard deviation over 40 resamplings of the samples. As many training digits are
the floor. A logistic regression on the training digits reads the samples: `confidence` is the mean probability of the
class it chooses, `classes off` the total variation between frequencies of classes, samples against training digits.
"""

DIFFUSERS = """## diffusers' schedulers

The probability flow of the VP SDE for the law above, 64 images, from the same noise, through the same noise levels
(`log_snr`) with the same score: the largest difference of any state, and root mean square errors of the samples against
1,000 steps of `dpm++_3m`. diffusers' DEIS cannot reach noise level 0, so `deis` is compared without the last, denoising
step. The remaining differences are those of orders: we take only the last step, to noise-free data, with a lower one;
diffusers the second-last of `unipc_3`, too, and below 15 steps those of `dpm++_3m` and `deis`.
The rest is float32.
"""

LIMITS = """## What this does not show

A mixture of Gaussians with its exact score, and one small network for images of 8x8: neither has the fine detail of
photographs, and no FID was measured. Only the VP SDE was measured with a trained network. The default was chosen on
these measurements. One seed: what is within the errors given is not ranked.
"""
