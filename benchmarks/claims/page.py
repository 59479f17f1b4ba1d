"""docs/claims.md, from recorded results alone."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from benchmarks.claims.checks import Check, Claim
from benchmarks.claims.networks import SNAPSHOT
from benchmarks.claims.run import Run
from benchmarks.claims.verdicts import FAILS, HOLDS, UNKNOWN, Estimate, combine, verdict
from benchmarks.markdown import header, machine, row, section, set_section

COMMAND = "python -m benchmarks.claims --folder=DIR"
MISSING = "not measured"
WIDTH = 100
RERUN = "another seed"  # the section of the page that compares verdicts


def page(claims: Sequence[Claim], run: Run, before: str = "") -> str:
    """Return the page; `before` is its previous text, whose comparison of seeds is kept."""
    lines = [TEXT.format(machine=machine(), seeds=_count(len(run.seeds)), steps=2 * SNAPSHOT)]
    lines += ["## Summary", "", *header("claim", HOLDS, FAILS, UNKNOWN, MISSING)]
    for claim in claims:
        found = Counter(verdict_of(check, run) for check in claim.checks)
        counts = [str(found[each]) for each in (HOLDS, FAILS, UNKNOWN, MISSING)]
        lines.append(row(f"{claim.number}. {claim.title}", *counts))
    for claim in claims:
        lines += ["", *_section(claim, run)]
    lines += ["", LIMITATIONS.strip()]
    text = "\n".join(lines) + "\n"
    kept = section(before, RERUN)
    return f"{text}\n{kept}\n" if kept else text


def with_rerun(text: str, claims: Sequence[Claim], run: Run, other: Run) -> str:
    """Return the page with a comparison of the verdicts of `run` and of `other` seeds."""
    columns = [f"seeds {', '.join(map(str, each.seeds))}" for each in (run, other)]
    numbers = ",".join(str(claim.number) for claim in claims)
    options = f"--claim={numbers} --first_seed={other.seeds[0]} --seeds={len(other.seeds)}"
    lines = ["## Another seed", "", RERUN_TEXT, "", "```", f"{COMMAND} {options}", "```", ""]
    lines += header("claim", "", *columns)
    for claim in claims:
        for check in claim.checks:
            verdicts = verdict_of(check, run), verdict_of(check, other)
            if check.quantity.measurement.has_seeds and MISSING not in verdicts:
                lines.append(row(str(claim.number), check.text, *verdicts))
    return set_section(text, RERUN, "\n".join(lines))


def verdict_of(check: Check, run: Run) -> str:
    """Return the verdict on a check, or MISSING."""
    numbers = run.numbers(check.quantities)
    return MISSING if numbers is None else verdict(check.estimate(numbers), check.threshold)


def _section(claim: Claim, run: Run) -> list[str]:
    """Return the section of a claim."""
    lines = [f"## {claim.number}. {claim.title}", "", f"Source: {claim.source}.", ""]
    lines += [*textwrap.wrap(claim.text, WIDTH), ""]
    lines += ["```", f"{COMMAND} --claim={claim.number}", "```", ""]
    lines += header("claim", "paper", "here", "number", "margin", "verdict")
    return lines + [_row(check, run) for check in claim.checks]


def _row(check: Check, run: Run) -> str:
    numbers = run.numbers(check.quantities)
    if numbers is None:
        return row(check.text, check.paper, "", "", f"{check.margin:g}", MISSING)
    estimate = check.estimate(numbers)
    shown = run.numbers(check.shown) if check.shown else None
    values = " against ".join(_format(combine(each)) for each in zip(*(shown or [])))
    number = _ratio(estimate) if check.divisor else _format(estimate)
    found = verdict(estimate, check.threshold)
    return row(check.text, check.paper, values, number, f"{check.margin:g}", found)


def _ratio(log: Estimate) -> str:
    """Format a ratio from its logarithm; the error is relative to first order."""
    return f"ratio {_format(Estimate(math.exp(log.value), math.exp(log.value) * log.stderr))}"


def _format(estimate: Estimate) -> str:
    """Format a number and its standard error with two digits of the error."""
    if not estimate.stderr:
        return f"{estimate.value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(estimate.stderr)))
    return f"{estimate.value:.{digits}f} +- {estimate.stderr:.{digits}f}"


def _count(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


TEXT = """# The paper's claims on small data

`make claims` trains small networks on scikit-learn's handwritten digits (1,438 training images of
8x8 pixels), with {seeds}, measures the claims of arXiv:2011.13456, and writes this page. Some
measurements are repeated with the networks of Fashion-MNIST and emoji in [zoo](zoo.md). The scale
is far below that of the paper: these results show whether a claim also holds here, not whether the
paper's figures are right.

- **Quality** is the sliced Wasserstein-2 distance to the held-out digits, as in
  [sampling](sampling.md): along 64 pixels and 64 random directions, as root mean square, with the
  held-out classes weighted as in training. Smaller is better. The paper has FID on CIFAR-10.
- **Networks** of one claim have the same data, width, optimizer, batches of 64 images and number
  of training steps: {steps}, unless a claim states otherwise. `benchmarks/claims/networks.py` lists
  them.
- **Errors** are standard errors. Their square is the variance over seeds plus the mean square of
  the errors over samples, divided by the number of seeds. Rows with a network of the zoo have one
  seed.
- **Margins** were fixed before the first measurement, in `benchmarks/claims/`. A claim holds if its
  number is above the margin by two standard errors, and does not hold if it is below by two;
  otherwise we cannot tell. A ratio must exceed 1 where something is claimed to be better, and 0.9
  where it is claimed to be as good.
- **Added later**, with the same margins, after other rows had been measured: those of claims 1 to 3
  with 250 or 500 steps, those of claim 4 with `longer`, twice as many residual blocks in claim 5,
  Fashion-MNIST and emoji in claim 7, and more images for colorization.
- **More samples**: the first page had 250 samples in claims 1 to 3, too few to tell many samplers
  apart, and PC with 200 evaluations in claim 9. Now there are 1,000 samples, and PC in claim 9 has
  the paper's 2,000 evaluations, with 500 samples of both sides. Margins and networks are the same.
- **Measured again**: bits/dim of claims 4 and 9, which an error had biased by up to 0.3: the probes
  of the trace were drawn from the keys of the dequantizing noise.
- **Data**: Fashion-MNIST and emoji must be installed ([data](data.md)); without them, their rows
  are not measured.

Measured on {machine}. The commands can be stopped and started
again. Results are cached in DIR under a hash of the configs and the code, so that a change of
either measures again.
"""

RERUN_TEXT = "The same checks with other seeds, for networks and samples alike."

LIMITATIONS = """## Limitations

- Images of 8x8 pixels, networks of 0.2 million parameters and a few minutes of training: there is
  no fine detail, for which the samplers and architectures of the paper differ most.
- With few seeds the standard error itself is uncertain. With many checks, some verdicts are wrong
  by chance: about 1 in 40 on either side for a number that is exactly at its margin.
- The error estimate takes the compared samples for independent. Some share their initial noise, so
  that the true errors are smaller.
"""
